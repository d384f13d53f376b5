"""A run's batches: which samples, under which digest. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from entangled.alignment import Layout, Position, SampleIds, batch_digest, sample_order
from entangled.errors import ProtocolError
from entangled.experiment import Experiment

ORDERS, ORDERS_BYTES = 4, 64 * 1024 * 1024
"""Epochs' orders that are kept; two where one weighs more than this."""


class Batch(NamedTuple):
    """One batch of a run."""

    position: Position
    sample_ids: SampleIds
    digest: bytes


class Batches:
    """The batches of a run of `experiment`, of which some are kept: they are the same for all who predict for them."""

    def __init__(self, experiment: Experiment, layout: Layout) -> None:
        self._experiment, self._layout = experiment, layout
        self._orders: dict[int, SampleIds] = {}
        self._kept: dict[int, Batch] = {}

    def order(self, epoch: int) -> SampleIds:
        """The sample order of an epoch, int64.

        Raises:
            ProtocolError: the run has no such epoch.
        """
        if not 0 <= epoch < self._layout.epochs:
            raise ProtocolError("no such epoch", expected=f"0 … {self._layout.epochs - 1}", got=str(epoch))
        if epoch not in self._orders:
            ids = np.arange(self._layout.samples, dtype=np.int64)
            order = sample_order(ids, self._experiment.exchange.shuffle_buffer, self._experiment.seed, epoch)
            while len(self._orders) >= (ORDERS if order.nbytes <= ORDERS_BYTES else 2):
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = order
        return self._orders[epoch]

    def at(self, index: int, *, keep: bool) -> Batch:
        """The batch at an index; from now on it is kept, or not any more."""
        found = self._kept.get(index) or self._computed(index)
        if keep:
            self._kept[index] = found
        else:
            self._kept.pop(index, None)
        return found

    def kept_before(self, index: int) -> bool:
        """Whether any is kept that comes before an index."""
        return any(kept < index for kept in self._kept)

    def _computed(self, index: int) -> Batch:
        position = self._layout.position(index)
        sample_ids = self._layout.batch(self.order(position.epoch), position.step)
        return Batch(position, sample_ids, batch_digest(position, sample_ids))
