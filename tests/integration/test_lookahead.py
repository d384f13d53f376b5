"""Look-ahead is what it says: peers with a step of ten lines against a twin in one process, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entangled.alignment import sample_order
from entangled.participation.peer import Peer
from tests.fakes import InMemoryCoordinator
from tests.support import SAMPLES, data, experiment

INPUTS = np.random.default_rng(0).normal(size=(SAMPLES, 2)).astype(np.float32)
NAMES = ("a", "b", "c")


class Model:
    """A softmax of a matrix; its step moves it towards the soft target by λ and some."""

    def __init__(self, name: str) -> None:
        self.weights = np.random.default_rng([*name.encode()]).normal(size=(2, 3)).astype(np.float32)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        scores = np.exp(INPUTS[ids] @ self.weights)
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)

    def update(self, ids: np.ndarray, target: np.ndarray, weight: float) -> None:
        self.weights += np.float32(0.5 + weight) * (INPUTS[ids].T @ (target - self.predict(ids)))


def twin(lookahead: int, epochs: int) -> dict[str, list[np.ndarray]]:
    """The weights after each step, in one process: predictions are made so many updates early."""
    plan = experiment(NAMES, epochs=epochs)
    layout, models = plan.layout(SAMPLES), {name: Model(name) for name in NAMES}
    orders = [sample_order(np.arange(SAMPLES), 100, plan.seed, epoch) for epoch in range(epochs)]
    batches = [layout.batch(orders[layout.position(i).epoch], layout.position(i).step) for i in range(layout.positions)]
    predicted: dict[tuple[int, str], np.ndarray] = {}
    weights: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for index, ids in enumerate(batches):
        first = 0 if index == 0 else index + lookahead
        for due in range(first, min(index + lookahead + 1, len(batches))):
            predicted |= {(due, name): model.predict(batches[due]) for name, model in models.items()}
        for name, model in models.items():
            others = [predicted[index, other].astype(np.float64) for other in NAMES if other != name]
            model.update(ids, (np.sum(others, axis=0) / 2).astype(np.float32), layout.position(index).epoch / epochs)
            weights[name].append(model.weights.copy())
    return weights


class KilledError(Exception):
    """In the place of a signal."""


def train(way: Any, plan: Any, name: str, folder: Path, dies_at: Callable[[int], bool]) -> list[np.ndarray]:
    peer, model = Peer(way, plan, name, "run", data()), Model(name)
    weights: list[np.ndarray] = []

    def restore(state: dict[str, Any]) -> None:
        model.weights, weights[:] = state["weights"].copy(), list(state["past"])

    peer.keep(folder / name, lambda: {"weights": model.weights, "past": list(weights)}, restore)
    for batch in peer:
        for ahead in batch.due:
            ahead.submit(model.predict(ahead.ids))
        if dies_at(peer.course.layout.index(batch.position)):
            raise KilledError
        target = batch.result()
        model.update(batch.ids, target.probabilities, target.weight)
        weights.append(model.weights.copy())
    peer.finish()
    return weights


@pytest.mark.parametrize("lookahead", [0, 1, 2, 5, 40])
def test_peers_learn_from_what_the_others_predicted_so_many_updates_ago(tmp_path: Path, lookahead: int) -> None:
    plan = experiment(NAMES, epochs=4, lookahead=lookahead)
    coordinator = InMemoryCoordinator(plan)
    with ThreadPoolExecutor(3) as pool:
        jobs = {
            name: pool.submit(train, coordinator.peer(name), plan, name, tmp_path, lambda _: False) for name in NAMES
        }
        for name, expected in twin(lookahead, 4).items():
            got = jobs[name].result(60)
            assert len(got) == len(expected) == 12
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True)), name


@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_guarantee_6_what_was_in_flight_at_a_checkpoint_is_not_predicted_anew(tmp_path: Path, lookahead: int) -> None:
    """One that is killed again and again, and comes back with newer weights than its predictions were made with."""
    plan = experiment(NAMES, epochs=4, lookahead=lookahead)
    plan = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"steps": 2})})
    coordinator, deaths = InMemoryCoordinator(plan), [3, 4, 4, 9, 11]

    def survive(name: str) -> list[np.ndarray]:
        while True:
            try:
                return train(coordinator.peer(name), plan, name, tmp_path, lambda i: name == "b" and [i] == deaths[:1])
            except KilledError:
                deaths.pop(0)
                coordinator.cut(name)

    with ThreadPoolExecutor(3) as pool:
        jobs = {name: pool.submit(survive, name) for name in NAMES}
        for name, expected in twin(lookahead, 4).items():
            got = jobs[name].result(60)
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True)), name
    assert deaths == []
    assert coordinator.warnings == [], "something was predicted anew"
