"""One backend's learners at work, in a process of their own; what came of it goes into a folder.

    python -m tests.integration.learner_process BACKEND FOLDER

`FOLDER/reference` holds what the notebook's loop did: initial weights and batches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from entangled.experiment import Experiment, parse
from entangled.participation.seam import SoftTarget
from peer import backends
from peer.data import one_hot
from peer.learner import Learner

MODELS = {
    "cnn": "cnn",
    "mlp": "mlp",
    "normed": "tests.integration.models:normed",
    "noisy": "tests.integration.models:noisy",
}
PAIRS = {"self_other": ("cnn", "normed"), "other_self": ("mlp", "normed")}
"""Who is entangled, by direction."""

STEPS, KEPT_AT = 12, 5


def described(backend: str, direction: str = "self_other") -> Experiment:
    """An experiment with every model of the suite as a peer."""
    optimizer = {"name": "adam", "learning_rate": 0.001}
    name, _, compiled = backend.partition("-")
    settings = {"backend": name, "compile": bool(compiled), "device": "cpu", "optimizer": optimizer}
    exchange = {"data": "mnist", "direction": direction}
    peers = {peer: {"model": model, **settings} for peer, model in MODELS.items()}
    return parse({"name": "x", "epochs": 1, "batch_size": 8, "exchange": exchange, "peers": peers}, "x")


def entangle(learners: list[Learner], x: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
    """What two peers do, without the network: their predictions and losses, step by step."""
    predictions, losses = [], []
    for inputs, wanted, weight in zip(x, labels, weights, strict=True):
        both = [learner.predict(inputs) for learner in learners]
        outcome = [
            learner.update(inputs, wanted, SoftTarget(other, float(weight)))
            for learner, other in zip(learners, reversed(both), strict=True)
        ]
        predictions.append(both)
        losses.append([loss for loss, _ in outcome])
    return np.array(predictions), np.array(losses)


def parity(backend: str, folder: Path) -> dict[str, Any]:
    """The notebook's loop, by this backend's learners, from the same weights."""
    found: dict[str, Any] = {}
    for direction, pair in PAIRS.items():
        reference = folder / "reference" / direction
        with np.load(reference / "batches.npz") as batches:
            x, y, weights = batches["x"], batches["y"], batches["weight"]
        learners = [backends.learner(described(backend, direction), name, (28, 28), 10) for name in pair]
        for name, learner in zip(pair, learners, strict=True):
            learner.load_weights(reference / f"{name}.weights.h5")
        labels = np.array([one_hot(one, 10) for one in y])
        predictions, losses = entangle(learners, x, labels, weights)
        found |= {f"{direction} predictions": predictions, f"{direction} losses": losses}
        for name, learner in zip(pair, learners, strict=True):
            found |= {f"{direction} {name} {i}": w for i, w in enumerate(learner.weights())}
    return found


def noise(backend: str, folder: Path) -> dict[str, Any]:
    """Dropout and batch normalisation: twice from the seed, and once from a checkpoint half-way."""
    random = np.random.default_rng(3)
    x = random.random((STEPS, 8, 28, 28), dtype=np.float32)
    labels = np.array([one_hot(y, 10) for y in random.integers(0, 10, (STEPS, 8))])
    others = random.dirichlet(np.ones(10), (STEPS, 8)).astype(np.float32)

    def new() -> Learner:
        return backends.learner(described(backend), "noisy", (28, 28), 10)

    def train(learner: Learner, begin: int, end: int) -> list[float]:
        return [learner.update(x[i], labels[i], SoftTarget(others[i], 0.1))[0] for i in range(begin, end)]

    first, second, third = new(), new(), new()
    before = [first.predict(x[0]), first.predict(x[0])]
    losses = [train(first, 0, STEPS), train(second, 0, KEPT_AT)]
    kept = second.state()
    losses[1] += train(second, KEPT_AT, STEPS)
    third.restore([array.copy() for array in kept])
    rest = train(third, KEPT_AT, STEPS)
    first.save(folder / backend / "noisy.keras")
    found = {"before": before, "losses": losses, "rest": rest, "after": first.predict(x[0]), "x": x[0]}
    for name, learner in (("first", first), ("second", second), ("third", third)):
        found |= {f"{name} {i}": v for i, v in enumerate(learner.state())}
    # In training, dropout draws and batch normalisation takes the batch's own mean: the same batch, another loss.
    cross_entropy = -np.log(before[0][labels[0] == 1]).mean()
    others_too = (before[0] * np.log(before[0] / others[0])).sum(axis=1).mean()
    return {**found, "loss without": cross_entropy + 0.1 * others_too}


def private(backend: str, folder: Path) -> dict[str, Any]:
    """Private labels: what must be the same as without, and the loss of a step on two batches."""
    random = np.random.default_rng(5)
    mine, public = random.random((2, 8, 28, 28), dtype=np.float32)
    labels = one_hot(random.integers(0, 10, 8), 10)
    others = random.dirichlet(np.ones(10), 8).astype(np.float32)
    steps = {
        "shared": lambda learner: learner.update(mine, labels, SoftTarget(others, 0.5)),
        "private": lambda learner: learner.update(mine, labels, SoftTarget(others, 0.5), mine),
        "without": lambda learner: learner.update(mine, labels, SoftTarget(others, 0.0)),
        "alone": lambda learner: learner.learn(mine, labels),
        "two": lambda learner: learner.update(mine, labels, SoftTarget(others, 0.5), public),
    }
    found: dict[str, Any] = {}
    for name, step in steps.items():
        learner = backends.learner(described(backend), "mlp", (28, 28), 10)
        own, shared = learner.predict(mine), learner.predict(public)
        found |= {f"{name} loss": step(learner)[0], f"{name} after": learner.predict(mine)}
    divergence = (shared * np.log(shared / others)).sum(axis=1).mean()
    return {**found, "two expected": -np.log(own[labels == 1]).mean() + 0.5 * divergence}


def main(backend: str, folder: Path) -> None:
    """Do everything, and say what it was computed on."""
    module = backends.configure(described(backend), "cnn")
    (folder / backend).mkdir()
    for name, work in {"parity": parity, "noise": noise, "private": private}.items():
        np.savez(folder / backend / f"{name}.npz", **work(backend, folder))
    print(json.dumps({"computed": module.devices_in_use()}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
