"""Answers for positions that only the log remembers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from entangled.alignment import Position
from entangled.distribution import Probabilities, statistics
from entangled.errors import LogError
from entangled.exchange_log import Row, from_batch, partitions, read_batches
from entangled.experiment import Experiment


class Archive:
    """Logged exchanges by position, for one peer that catches up: in order they are read once, a batch at a time."""

    def __init__(self, run: Path, experiment: Experiment) -> None:
        """Look into the log in folder `run`."""
        self._run = run
        self._experiment = experiment
        self._epoch = -1
        self._next = -1
        self._rows: Iterator[Row] = iter(())
        self._prefetched: list[Row] = []

    def exchange(self, position: Position, index: int) -> tuple[tuple[str, ...], list[Probabilities]]:
        """The members and their predictions, in the experiment's order.

        Raises:
            LogError: the log does not hold this position, or no longer its predictions.
        """
        rows = self.rows(position, index)
        predictions = [row.prediction for row in rows if row.prediction is not None]
        if len(predictions) < len(rows):
            raise LogError(
                f"exchange.log = {self._experiment.exchange.log} keeps no predictions that old as a peer asks for at "
                f"{position}: its checkpoints are lost; start the run anew"
            )
        return rows[0].members, predictions

    def statistics(self, position: Position, index: int) -> dict[str, npt.NDArray[np.float32]]:
        """Each member's `entangled.distribution.statistics`, as stored, or computed where they are not.

        Raises:
            LogError: the log does not hold this position.
        """
        rows = self.rows(position, index)
        stored = {row.peer: row.statistics for row in rows if row.statistics is not None}
        if len(stored) == len(rows):
            return stored
        members, predictions = rows[0].members, [row.prediction for row in rows if row.prediction is not None]
        measured = statistics(np.stack(predictions), self._experiment.combination(members))
        return dict(zip(members, measured, strict=True))

    def rows(self, position: Position, index: int) -> list[Row]:
        """Every member's row, in the experiment's order.

        Raises:
            LogError: the log does not hold this position.
        """
        if position.epoch != self._epoch or index < self._next:
            self._reopen(position.epoch)
        found, self._prefetched = self._prefetched, []
        if not found or found[0].index != index:
            found = self._find(index)
        if not found:  # the epoch was still being written when it was opened
            self._reopen(position.epoch)
            found = self._find(index)
        self._next = index + 1
        members = found[0].members if found else ()
        if not found or tuple(row.peer for row in found) != members:
            raise LogError(f"the log does not hold {position}", expected=f"rows of {', '.join(members)}")
        return found

    def prefetch(self) -> None:
        """Look for the next position's rows now, while nobody waits for them: they will be asked for."""
        if not self._prefetched:
            with contextlib.suppress(LogError):  # which who asks for them is told
                found = self._find(self._next)
                whole = found and len(found) == len(found[0].members)
                self._prefetched = found if whole else []  # the rest is still being written

    def _find(self, index: int) -> list[Row]:
        found: list[Row] = []
        for row in self._rows:
            if row.index == index:
                found.append(row)
            if found and len(found) == len(found[0].members):
                break
        return found

    def _reopen(self, epoch: int) -> None:
        self._epoch, self._next, self._rows, self._prefetched = epoch, -1, self._open(epoch), []

    def _open(self, epoch: int) -> Iterator[Row]:
        for path in [path for number, path in partitions(self._run) if number == epoch]:
            yield from (row for batch in read_batches(path) for row, _ in from_batch(batch, epoch))
