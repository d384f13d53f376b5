"""What a peer with private data says: the same, however much of it there is. And its errors, which name nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from entangled.alignment import Fingerprint, Position, SampleIds, sample_order
from entangled.datasets import Dataset, Unlabelled
from entangled.distribution import Probabilities
from entangled.experiment import Experiment, parse
from entangled.participation.peer import Peer
from entangled.participation.seam import Exchange, SoftTarget

CLASSES, PUBLIC = 3, 12


class Recorded(Exchange):
    """Answers every prediction with the uniform distribution, and writes down all that was said."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.values: dict[str, float] = {}

    def join(self, fingerprint: Fingerprint) -> int:
        self.said.append(fingerprint)
        return 0

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        return sample_ids

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        return 0

    def order(self, epoch: int) -> SampleIds:
        return sample_order(np.arange(PUBLIC), "full", 0, epoch)

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        self.said.append((position, sample_ids.tolist(), prediction.shape, prediction.dtype))
        self.rows = len(sample_ids)

    def result(self, position: Position) -> SoftTarget:
        return SoftTarget(np.full((self.rows, CLASSES), 1 / CLASSES, np.float32), 0.5)

    def settle(self, complete: int) -> None: ...

    def forget(self, complete: int) -> None: ...

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        if epoch_end:
            self.said.append((position, sorted(values)))
            self.values = values

    def finish(self, values: dict[str, float]) -> None:
        self.said.append(sorted(values))

    def fail(self, reason: str) -> None:
        self.said.append(reason)

    def close(self) -> None: ...


def experiment() -> Experiment:
    peers = {name: {"model": "mlp", "private": {}} for name in ("a", "b")}
    return parse({"name": "x", "epochs": 2, "batch_size": 5, "exchange": {"data": "x"}, "peers": peers}, "test")


def trained(samples: int, tmp_path: Path) -> Recorded:
    from peer import trainer
    from peer.learners import tensorflow_learner
    from peer.private import Lessons, PrivateBatches

    random = np.random.default_rng(samples)
    public = Unlabelled(random.random((PUBLIC, 4), np.float32), np.arange(PUBLIC), CLASSES)
    x, y = random.random((samples, 4), np.float32), np.arange(samples) % CLASSES
    data = Dataset(x, y, np.arange(samples), x[:6], y[:6], CLASSES)
    way, settings = Recorded(), experiment()
    part = Peer(way, settings, "a", "run", public)
    learner = tensorflow_learner.learner(settings, "a", (4,), CLASSES)
    trainer.train(part, learner, public, tmp_path / str(samples), private=Lessons(data, PrivateBatches(data, 5, 1), {}))
    return way


# Keras on TensorFlow reads variables in an old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_guarantee_4_nothing_that_is_said_depends_on_how_much_private_data_there_is(tmp_path: Path) -> None:
    few, many = (trained(samples, tmp_path) for samples in (7, 31))
    assert [str(said) for said in few.said[1:]] == [str(said) for said in many.said[1:]]
    for way in (few, many):
        (fingerprint, *_) = way.said
        assert isinstance(fingerprint, Fingerprint)
        assert fingerprint.samples == PUBLIC
        assert (way.values["accuracy"] * 15) % 1 == pytest.approx(0, abs=1e-9)  # of 3 full batches, whatever there is
