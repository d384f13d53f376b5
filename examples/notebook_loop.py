"""The notebook's loop: two models entangled in one process, eagerly, step by step.

This is what the whole system does, in forty lines that can be read, and the oracle of the parity test: from the same
initial weights and the same sample order, a distributed run's predictions and weights are these, to the bit on a CPU.

    python examples/notebook_loop.py          # 200 steps on real MNIST, CNN and MLP, batch 8
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Batch = tuple[Any, Any, float]
"""Inputs `(rows, …)`, one-hot labels `(rows, classes)`, and λ for this step."""


def entangle(
    models: tuple[Any, Any],
    optimizers: tuple[Any, Any],
    batches: Iterable[Batch],
    direction: str = "self_other",
    seen: Callable[[Any, Any], None] | None = None,
) -> Iterator[tuple[float, float]]:
    """Train two models on the same batches, each pulled towards what the other predicted before either learned.

    Args:
        models: two Keras models whose output is a probability distribution.
        optimizers: one for each.
        batches: inputs, labels and λ, step by step.
        direction: `self_other` for KL(self ‖ other), the notebook's, or `other_self`.
        seen: is shown both predictions of every step.

    Yields:
        Both losses of every step.
    """
    cross_entropy = keras.losses.CategoricalCrossentropy()
    divergence = keras.losses.KLDivergence()

    for x, labels, weight in batches:
        predictions = [model(x, training=False) for model in models]
        if seen is not None:
            seen(*predictions)
        losses: list[float] = []
        for model, optimizer, other in zip(models, optimizers, reversed(predictions), strict=True):
            with tf.GradientTape() as tape:
                # Behind an identity, Keras takes the probabilities as they are, clipped at 1e-7; else it would find the
                # logits that the softmax made them from.
                own = tf.identity(model(x, training=True))
                pair = (own, other) if direction == "self_other" else (other, own)
                loss = cross_entropy(labels, own) + weight * divergence(*pair)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(loss))
        yield losses[0], losses[1]


def main() -> None:
    """Entangle the notebook's CNN and MLP for 200 steps and print their losses."""
    from entangled import datasets
    from peer.models import cnn, mlp

    keras.utils.set_random_seed(0)
    data = datasets.load("mnist")
    models = cnn((28, 28), 10), mlp((28, 28), 10)
    optimizers = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)
    order = np.random.default_rng(0).permutation(len(data.x)).reshape(-1, 8)[:200]
    batches = ((data.x[ids], np.eye(10, dtype=np.float32)[data.y[ids]], 0.05) for ids in order)
    for step, losses in enumerate(entangle(models, optimizers, batches)):
        if step % 20 == 0:
            print(f"step {step}: CNN loss {losses[0]:.4f}, MLP loss {losses[1]:.4f}")


if __name__ == "__main__":
    main()
