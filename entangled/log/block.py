"""Exchanges as arrays: one, and many in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled.alignment import Position, SampleIds
from entangled.errors import LogError

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
    kept: Predictions | None
    """`(peers, rows, classes)` float32; None where they are not kept."""
    prediction_digests: npt.NDArray[np.object_]
    """`(peers,)` of bytes."""
    statistics: npt.NDArray[np.float32]
    """`(peers, 5)`, as `entangled.distribution.STATISTICS`."""
    received_at: npt.NDArray[np.int64]
    """`(peers,)` microseconds since 1970, UTC."""
    wait_us: npt.NDArray[np.int64]
    """`(peers,)`."""

    @property
    def predictions(self) -> Predictions:
        """`kept`.

        Raises:
            LogError: they are not.
        """
        if self.kept is None:
            raise LogError(f"the log does not keep the predictions of {self.position}")
        return self.kept


@dataclass(frozen=True)
class Block:
    """Successive exchanges of one epoch with equally many samples, and all with predictions or all without."""

    epoch: int
    steps: npt.NDArray[np.int64]
    """`(exchanges,)`, as `indexes` and `weights` are."""
    indexes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    sample_ids: SampleIds
    """`(exchanges, rows)`."""
    kept: Predictions | None
    """`(exchanges, peers, rows, classes)`; None where they are not kept."""
    prediction_digests: npt.NDArray[np.object_]
    """`(exchanges, peers)`, as `received_at`, `wait_us` and `bytes` are."""
    statistics: npt.NDArray[np.float32]
    """`(exchanges, peers, 5)`, as `entangled.distribution.STATISTICS`."""
    received_at: npt.NDArray[np.int64]
    wait_us: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    @property
    def predictions(self) -> Predictions:
        """`kept`.

        Raises:
            LogError: they are not.
        """
        if self.kept is None:
            raise LogError(f"the log does not keep the predictions of {Position(self.epoch, int(self.steps[0]))}")
        return self.kept

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
                None if self.kept is None else self.kept[i],
                self.prediction_digests[i],
                self.statistics[i],
                self.received_at[i],
                self.wait_us[i],
            )
