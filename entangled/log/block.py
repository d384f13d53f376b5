"""Exchanges as arrays: one, and many in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled.alignment import Position, SampleIds

Predictions = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Exchange:
    """One logged exchange. Wherever there is an axis of peers, it runs in the experiment's order."""

    position: Position
    index: int
    weight: float
    """λ in force; a float32 value."""
    sample_ids: SampleIds
    """`(rows,)`."""
    predictions: Predictions
    """`(peers, rows, classes)` float32."""
    received_at: npt.NDArray[np.int64]
    """`(peers,)` microseconds since 1970, UTC."""
    wait_us: npt.NDArray[np.int64]
    """`(peers,)`."""


@dataclass(frozen=True)
class Block:
    """Successive exchanges of one epoch with equally many samples: what is computed on at once."""

    epoch: int
    steps: npt.NDArray[np.int64]
    """`(exchanges,)`, as `indexes` and `weights` are."""
    indexes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    sample_ids: SampleIds
    """`(exchanges, rows)`."""
    predictions: Predictions
    """`(exchanges, peers, rows, classes)`."""
    received_at: npt.NDArray[np.int64]
    """`(exchanges, peers)`, as `wait_us` and `bytes` are."""
    wait_us: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    def by_peer(self) -> list[Predictions]:
        """Each peer's predictions for all samples of the block, `(exchanges · rows, classes)`."""
        _, peers, _, classes = self.predictions.shape
        return [self.predictions[:, peer].reshape(-1, classes) for peer in range(peers)]

    def exchanges(self) -> Iterator[Exchange]:
        """The block's exchanges, one by one; their arrays are views."""
        for i, (step, index, weight) in enumerate(
            zip(self.steps.tolist(), self.indexes.tolist(), self.weights.tolist(), strict=True)
        ):
            yield Exchange(
                Position(self.epoch, step),
                index,
                weight,
                self.sample_ids[i],
                self.predictions[i],
                self.received_at[i],
                self.wait_us[i],
            )
