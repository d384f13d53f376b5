"""Private data in one process: models that share no labelled sample learn from each other's predictions.

This is what a run with private data does, in forty lines that can be read, and the oracle of its parity test. A has
labels for the digits 0 to 5 alone, B for 4 to 9; both predict for the same unlabelled samples.

    python examples/private_loop.py          # a minute on real MNIST, CNN and MLP
    python examples/private_loop.py --misaligned        # what guarantee 1 is for
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from entangled.distribution import MEAN, Combination, soft_targets

Step = tuple[Any, Sequence[tuple[Any, Any]], float]
"""Public inputs `(rows, …)`; for each model, private inputs and one-hot labels; and λ."""


def entangle(
    models: Sequence[Any],
    optimizers: Sequence[Any],
    steps: Iterable[Step],
    direction: str = "other_self",
    combination: Combination = MEAN,
    seen: Callable[[list[Any]], list[Any]] = lambda predictions: predictions,
) -> Iterator[list[float]]:
    """Train several models, each on its own labels, and on what the others predicted for the public samples.

    Args:
        models: Keras models whose output is a probability distribution.
        optimizers: one for each.
        steps: what each learns from, step by step.
        direction: `self_other` for KL(self ‖ other), or `other_self`.
        combination: how the others' predictions are put together.
        seen: is shown all predictions of every step, and returns what is exchanged.

    Yields:
        Every model's loss, step by step.
    """
    cross_entropy = keras.losses.CategoricalCrossentropy()
    divergence = keras.losses.KLDivergence()

    for public, private, weight in steps:
        predictions = seen([model(public, training=False).numpy() for model in models])
        losses: list[float] = []
        for model, optimizer, (x, labels), others in zip(
            models, optimizers, private, soft_targets(predictions, combination), strict=True
        ):
            with tf.GradientTape() as tape:
                own, shared = tf.identity(model(x, training=True)), tf.identity(model(public, training=True))
                pair = (shared, others) if direction == "self_other" else (others, shared)
                loss = cross_entropy(labels, own) + weight * divergence(*pair)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(loss))
        yield losses


def misaligned(predictions: list[Any]) -> list[Any]:
    """The classic silent bug of this family: the second model's predictions are in another order of the samples."""
    return [predictions[0], np.roll(predictions[1], 1, axis=0)]


def main() -> None:
    """Entangle a CNN and an MLP with private digits for 600 steps, and print their accuracy on all ten."""
    from entangled import experiment_file, private_data
    from peer.models import cnn, mlp
    from peer.private import PrivateBatches

    keras.utils.set_random_seed(0)
    experiment = experiment_file.load("private-digits")
    public = private_data.public(experiment)
    private = [private_data.private(experiment, peer, public.classes) for peer in experiment.peer_names]
    batches = [PrivateBatches(data, 32, seed) for seed, data in enumerate(private)]
    models = cnn((28, 28), 10), mlp((28, 28), 10)
    optimizers = keras.optimizers.Adam(0.001), keras.optimizers.Adam(0.001)
    order = np.random.default_rng(0).integers(0, len(public.x), (600, 32))
    steps = ((public.x[ids], [b.batch(i) for b in batches], 3.0 * i / len(order)) for i, ids in enumerate(order))
    seen = misaligned if "--misaligned" in sys.argv else list[Any]
    for step, losses in enumerate(entangle(models, optimizers, steps, seen=seen)):
        if step % 100 == 0:
            print(f"step {step}: CNN loss {losses[0]:.4f}, MLP loss {losses[1]:.4f}")
    for name, model, data in zip(("CNN", "MLP"), models, private, strict=True):
        found = model(data.test_x).numpy().argmax(axis=1) == data.test_y
        new = ~np.isin(data.test_y, data.y)
        print(f"{name}: {found.mean():.2%} on all digits, {found[new].mean():.2%} on those it has no labels for")


if __name__ == "__main__":
    main()
