"""Steps a second: `entangled run notebook` against two ways to train both models in one process, in turns.

    python -m benchmarks.notebook [--rounds 3] [--steps 3000] [--eager-steps 150]

One is the notebook's eager loop. The other is one fused `tf.function` with TensorFlow's own threads, which is what
somebody would write who wants the notebook faster.

All do the same work: CNN and MLP, batch 8 of real MNIST, both predictions before either update, and the losses of each
step. The fused step and the run also count what was right, for the accuracy that the notebook reports. A rate is taken
after a warm-up of a tenth of the steps, so neither start-up nor tracing counts. The eager loop is
`examples/notebook_loop.py` with TensorFlow's defaults, as in a notebook.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measuring import in_turns, ratio
from entangled import experiment_file
from entangled.exchange_log import read
from entangled.launch import local

EAGER = """
import sys, time
import keras, numpy as np
from entangled import datasets
from examples.notebook_loop import entangle
from peer.models import cnn, mlp
steps = int(sys.argv[1])
data = datasets.load("mnist")
models = cnn((28, 28), 10), mlp((28, 28), 10)
optimizers = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)
order = np.random.default_rng(0).permutation(len(data.x)).reshape(-1, 8)[:steps]
batches = ((data.x[ids], np.eye(10, dtype=np.float32)[data.y[ids]], 0.05) for ids in order)
warm, began = steps // 10, 0.0
for step, _ in enumerate(entangle(models, optimizers, batches)):
    if step == warm - 1:
        began = time.perf_counter()
print((steps - warm) / (time.perf_counter() - began))
"""


FUSED = """
import sys, time
import keras, numpy as np, tensorflow as tf
from entangled import datasets
from peer.models import cnn, mlp
steps = int(sys.argv[1])
data = datasets.load("mnist")
models = cnn((28, 28), 10), mlp((28, 28), 10)
optimizers = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)
for model, optimizer in zip(models, optimizers):
    optimizer.build(model.trainable_variables)
ce, kl = keras.losses.CategoricalCrossentropy(), keras.losses.KLDivergence()

@tf.function
def step(x, labels, weight):
    before = [model(x, training=False) for model in models]
    losses, right = [], []
    for model, optimizer, other in zip(models, optimizers, reversed(before)):
        with tf.GradientTape() as tape:
            own = tf.identity(model(x, training=True))
            loss = ce(labels, own) + weight * kl(own, other)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        losses.append(loss)
        right.append(tf.reduce_sum(tf.cast(tf.argmax(own, 1) == tf.argmax(labels, 1), tf.int32)))
    return losses, right

order = np.random.default_rng(0).permutation(len(data.x)).reshape(-1, 8)[:steps]
warm, began, eye = steps // 10, 0.0, np.eye(10, dtype=np.float32)
all_losses, all_right = [], np.zeros(2, int)
for number, ids in enumerate(order):
    losses, right = step(tf.constant(data.x[ids]), tf.constant(eye[data.y[ids]]), tf.constant(0.05))
    all_losses.append([float(loss) for loss in losses])
    all_right += [int(count) for count in right]
    if number == warm - 1:
        began = time.perf_counter()
print((steps - warm) / (time.perf_counter() - began))
"""


def fused(steps: int) -> float:
    """Steps a second of one `tf.function` for both models in one process, with TensorFlow's own threads."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FUSED, str(steps)], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def eager(steps: int) -> float:
    """Steps a second of the notebook's loop, in a process of its own."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", EAGER, str(steps)], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def entangled(steps: int) -> float:
    """Steps a second of a run of the shipped `notebook` experiment, from its own log."""
    experiment = experiment_file.load("notebook", ["epochs=1", f"exchange.data=mnist[:{steps * 8}]"])
    with tempfile.TemporaryDirectory() as folder:
        local.run(experiment, Path(folder) / "run", observe=lambda _: None)
        arrivals = [row.received_at for row, _ in read(Path(folder) / "run") if row.peer == "cnn"]
    warm = steps // 10
    return (steps - 1 - warm) / ((arrivals[-1] - arrivals[warm]) / 1e6)


def main(
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of the distributed run.")] = 3000,
    eager_steps: Annotated[int, typer.Option(help="Steps of the eager loop.")] = 150,
) -> None:
    """Measure in turns and print every rate, the medians and the ratios."""
    rates = in_turns(
        rounds,
        {"entangled": lambda: entangled(steps), "eager": lambda: eager(eager_steps), "fused": lambda: fused(steps)},
    )
    ratios = {f"entangled : {name}": round(ratio(rates["entangled"], rates[name]), 2) for name in ("eager", "fused")}
    print(json.dumps({"steps_per_second": {name: round(median(r), 1) for name, r in rates.items()}, **ratios}))


if __name__ == "__main__":
    typer.run(main)
