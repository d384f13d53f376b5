"""Exchanges as arrays: one, and many in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from entangled.alignment import Position, SampleIds
from entangled.distribution import Combination, prediction_digest, statistics
from entangled.errors import LogError

Predictions = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """What a log whose predictions go keeps of each."""

    digests: npt.NDArray[np.object_]
    """`(…, members)` of bytes."""
    statistics: npt.NDArray[np.float32]
    """`(…, members, 5)`, as `entangled.distribution.STATISTICS`."""

    def __getitem__(self, chosen: Any) -> Stored:
        return Stored(self.digests[chosen], self.statistics[chosen])


@dataclass(frozen=True)
class Exchange:
    """One logged exchange. Wherever there is an axis of members, it runs in the experiment's order of peers."""

    position: Position
    index: int
    members: tuple[int, ...]
    """Who took part: places among the experiment's peers."""
    weight: float
    """λ in force; a float32 value."""
    sample_ids: SampleIds
    """`(rows,)`."""
    kept: Predictions | None
    """`(members, rows, classes)` float32; None where they are not kept."""
    stored: Stored | None
    """What is stored of the predictions beside them; None where they are all kept."""
    combination: Combination
    """How soft targets were made."""
    received_at: npt.NDArray[np.int64]
    """`(members,)` microseconds since 1970, UTC."""
    wait_us: npt.NDArray[np.int64]
    """`(members,)`."""

    @property
    def prediction_digests(self) -> list[bytes]:
        """Of each member's prediction."""
        return [prediction_digest(p) for p in self.predictions] if self.stored is None else list(self.stored.digests)

    @property
    def statistics(self) -> npt.NDArray[np.float32]:
        """`(members, 5)`, as `entangled.distribution.STATISTICS`."""
        return statistics(self.predictions, self.combination) if self.stored is None else self.stored.statistics

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
    """Successive exchanges of one epoch: same members, equally many samples, all with predictions or all without."""

    epoch: int
    members: tuple[int, ...]
    """Who took part in each of them: places among the experiment's peers, in its order."""
    steps: npt.NDArray[np.int64]
    """`(exchanges,)`, as `indexes` and `weights` are."""
    indexes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    sample_ids: SampleIds
    """`(exchanges, rows)`."""
    kept: Predictions | None
    """`(exchanges, members, rows, classes)`; None where they are not kept."""
    stored: Stored | None
    """What is stored of the predictions beside them; None where they are all kept."""
    combination: Combination
    """How soft targets were made."""
    received_at: npt.NDArray[np.int64]
    """`(exchanges, members)`, as `wait_us` and `bytes` are."""
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

    @property
    def statistics(self) -> npt.NDArray[np.float32]:
        """`(exchanges, members, 5)`, as `entangled.distribution.STATISTICS`."""
        if self.stored is not None:
            return self.stored.statistics
        return statistics(np.moveaxis(self.predictions, 1, 0), self.combination)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Block:
        """Only some of its exchanges."""
        arrays = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays, stored=None if self.stored is None else self.stored[chosen])

    def exchanges(self) -> Iterator[Exchange]:
        """The block's exchanges, one by one; their arrays are views."""
        for i, (step, index, weight) in enumerate(
            zip(self.steps.tolist(), self.indexes.tolist(), self.weights.tolist(), strict=True)
        ):
            yield Exchange(
                Position(self.epoch, step),
                index,
                self.members,
                weight,
                self.sample_ids[i],
                None if self.kept is None else self.kept[i],
                None if self.stored is None else self.stored[i],
                self.combination,
                self.received_at[i],
                self.wait_us[i],
            )
