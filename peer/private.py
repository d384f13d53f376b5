"""What a peer learns from where labels are private: batches in an order of its own, and baselines to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled import private_data
from entangled.alignment import SampleIds
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError
from entangled.experiment import Experiment
from peer.data import batch as of_dataset
from peer.learner import Learner


class PrivateBatches:
    """Batches of private data, the same each time they are asked for: a function of the seed and a batch's number.

    Epochs over private data are the peer's own and have nothing to do with the exchange's: one permutation of the
    samples follows another, and batches are cut from that, so that each is full. So their sizes tell nobody how many
    samples there are, and a peer that comes back finds its place from the number of exchanges alone.

    Args:
        data: the private data set.
        size: samples in a batch.
        seed: of the order.
    """

    def __init__(self, data: Dataset, size: int, seed: int) -> None:
        self._data, self._size, self._seed = data, size, seed
        self._orders: dict[int, SampleIds] = {}

    def places(self, number: int) -> SampleIds:
        """The samples of the batch of that number, from 0, as places in the data set."""
        samples = len(self._data.x)
        first, stop = number * self._size, (number + 1) * self._size
        parts = [
            self._order(epoch)[max(first - epoch * samples, 0) : stop - epoch * samples]
            for epoch in range(first // samples, -(-stop // samples))
        ]
        return np.concatenate(parts)

    def batch(self, number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Inputs `(size, …)` and one-hot labels `(size, classes)` of the batch of that number."""
        return of_dataset(self._data, self.places(number))

    def _order(self, epoch: int) -> SampleIds:
        if epoch not in self._orders:
            random = np.random.Generator(np.random.PCG64([self._seed, 0x9A17, epoch]))
            self._orders[epoch] = random.permutation(len(self._data.x)).astype(np.int64)
            while len(self._orders) > 2 + self._size // len(self._data.x):
                del self._orders[next(iter(self._orders))]
        return self._orders[epoch]


@dataclass(frozen=True)
class Baseline:
    """A model that is trained alongside, without the others: from the same initial weights, for as many steps."""

    learner: Learner
    batches: PrivateBatches

    def learn(self, number: int) -> None:
        """Train on the batch of that number."""
        self.learner.learn(*self.batches.batch(number))


@dataclass(frozen=True)
class Lessons:
    """A peer's private data, and the baselines that the experiment asks for, by name."""

    data: Dataset
    batches: PrivateBatches
    baselines: dict[str, Baseline]


def lessons(
    experiment: Experiment, peer: str, public: Unlabelled, own: str | None, fresh: Callable[[], Learner] | None
) -> Lessons:
    """What one peer learns from.

    Args:
        experiment: the run's.
        peer: the name in it.
        public: what predictions are exchanged on.
        own: the private data's name as of `datasets.load`, given on the peer's own side; None takes the experiment's.
        fresh: makes a learner like the peer's own, untrained; None leaves out the baselines.

    Raises:
        DataError: the private data cannot be had, or does not fit the public samples.
        ExperimentError: neither side names private data.
    """
    settings, seed = experiment.peers[peer].private, experiment.peer_seed(peer)
    size = (settings and settings.batch_size) or experiment.batch_size
    data = private_data.private(experiment, peer, public.classes, own)
    if data.x.shape[1:] != public.x.shape[1:]:
        raise DataError(
            "private and public samples have different shapes",
            expected=str(public.x.shape[1:]),
            got=str(data.x.shape[1:]),
        )
    baselines: dict[str, Baseline] = {}
    if fresh is not None:
        for name in experiment.baselines:
            source = data if name == "alone" else private_data.pooled(experiment, public.classes)
            baselines[name] = Baseline(fresh(), PrivateBatches(source, size, seed))
    return Lessons(data, PrivateBatches(data, size, seed), baselines)
