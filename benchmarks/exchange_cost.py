"""What an exchange adds to a step of a ResNet-18-size model, host copies included, on JAX, PyTorch or TensorFlow.

    python -m benchmarks.exchange_cost --backend jax                                      # on a GPU machine
    python -m benchmarks.exchange_cost --backend torch --width 4 --batch 16 --image 16    # a CPU will do

One model trains on made-up images and exchanges with a partner that answers at once, through a coordinator's process.
In turns, a step with the exchange and one without, which predicts nothing and has a soft target lying ready; both end
when the loss is on the host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

import entangled
from entangled import experiment_file
from entangled.experiment import Experiment, parse

PARTNER = """
import sys
import numpy as np
import entangled
address, samples, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with entangled.join(address, name="partner", data=samples, classes=classes) as peer:
    for batch in peer:
        batch.exchange(np.full((len(batch), classes), 1 / classes, np.float32))
"""


def resnet(input_shape: tuple[int, ...], classes: int) -> Any:
    """ResNet-18 (He et al., CVPR 2016), with the small stem for small images; `WIDTH` in the environment is its 64."""
    from keras import Input, Model, layers

    def convolved(x: Any, width: int, stride: int, size: int = 3) -> Any:
        x = layers.Conv2D(width, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    width = int(os.environ.get("WIDTH", "64"))
    inputs = Input(input_shape)
    x = layers.ReLU()(convolved(inputs, width, 1))
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            straight = convolved(x, width << stage, stride, 1) if stride == 2 else x
            x = layers.ReLU()(convolved(x, width << stage, stride))
            x = layers.ReLU()(layers.Add()([convolved(x, width << stage, 1), straight]))
    return Model(inputs, layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def described(backend: str, batch: int, steps: int) -> Experiment:
    """The experiment: `steps` steps with the exchange, of the model and its partner."""
    settings = {"model": "benchmarks.exchange_cost:resnet", "backend": backend, "threads": 0}
    exchange = {"data": "mnist", "weight": {"schedule": "constant", "value": 0.1}}
    peers = {"model": settings, "partner": {}}
    values = {"name": "cost", "epochs": 1, "batch_size": batch, "exchange": exchange, "peers": peers}
    return parse(values, "the benchmark")


def measure(address: str, experiment: Experiment, samples: int, image: int, classes: int) -> dict[str, Any]:
    """Milliseconds a step, both ways, medians; the first steps, in which everything is compiled, do not count."""
    from entangled.participation.seam import SoftTarget
    from peer import backends
    from peer.data import one_hot

    module = backends.configure(experiment, "model")
    learner = backends.learner(experiment, "model", (image, image, 3), classes)
    random, rows = np.random.default_rng(0), experiment.batch_size
    x = random.random((rows, image, image, 3), dtype=np.float32)
    labels = one_hot(random.integers(0, classes, rows), classes)
    ready = SoftTarget(np.full((rows, classes), 1 / classes, np.float32), 0.1)
    taken: dict[str, list[float]] = {"with exchange": [], "predicting": [], "without": []}
    with entangled.join(address, name="model", data=samples, classes=classes) as peer:
        for batch in peer:
            began = time.perf_counter()
            p = learner.predict(x)
            predicted = time.perf_counter()
            learner.update(x, labels, batch.exchange(p))
            ended = time.perf_counter()
            learner.update(x, labels, ready)
            taken["with exchange"].append(ended - began)
            taken["predicting"].append(predicted - began)
            taken["without"].append(time.perf_counter() - ended)
    warm = len(taken["without"]) // 5
    found: dict[str, Any] = {f"ms {name}": round(1000 * median(v[warm:]), 3) for name, v in taken.items()}
    exchanges = [w - p - o for w, p, o in zip(*(v[warm:] for v in taken.values()), strict=True)]
    found["ms of the exchange alone"] = round(1000 * median(exchanges), 3)
    parameters = sum(int(np.prod(w.shape)) for w in learner.weights())
    return {"computed": module.devices_in_use(), "parameters": parameters, **found}


def main(
    backend: Annotated[str, typer.Option(help="jax, torch or tensorflow.")] = "jax",
    batch: Annotated[int, typer.Option(help="Rows of a batch.")] = 256,
    classes: Annotated[int, typer.Option(help="Columns of a prediction.")] = 100,
    image: Annotated[int, typer.Option(help="Pixels in height and width.")] = 32,
    width: Annotated[int, typer.Option(help="Channels of the first stage; 64 is ResNet-18.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of each kind.")] = 100,
) -> None:
    """Measure, and print one JSON object."""
    os.environ["WIDTH"] = str(width)
    experiment, samples = described(backend, batch, steps), batch * steps
    with tempfile.TemporaryDirectory() as folder:
        path, address = Path(folder) / "cost.toml", f"unix:{folder}/socket"
        path.write_text(experiment_file.dumps(experiment), "utf-8")
        run = f"{folder}/run"
        command = [sys.executable, "-m", "coordinator", str(path), "--listen", address, "--run-dir", run]
        partner = [sys.executable, "-c", PARTNER, address, str(samples), str(classes)]
        started = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=2) for c in (command, partner)]
        try:
            found = measure(address, experiment, samples, image, classes)
        finally:
            for process in started:
                process.kill()
                process.wait()
    print(json.dumps({"batch": batch, "classes": classes, "image": image, **found}))


if __name__ == "__main__":
    typer.run(main)
