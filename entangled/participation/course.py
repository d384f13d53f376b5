"""Where a peer is in its run: which batch comes next, which wait for their result, what is due. No I/O in here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from entangled import distribution, process
from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, ProtocolError
from entangled.experiment import Experiment
from entangled.participation import checkpoint
from entangled.participation.arrays import as_probabilities
from entangled.participation.checkpoint import Checkpoint
from entangled.participation.tree import Tree

REPORT_SECONDS = 0.5
"""What is reported within an epoch is sent at most this often."""

EPOCH_CHECKPOINT_SECONDS = 1.0
"""Shorter epochs than this do not each get a checkpoint."""


@dataclass(frozen=True)
class Hooks:
    """How a loop's state is kept."""

    folder: Path
    state: Callable[[], Tree]
    restore: Callable[[Tree], object]


@dataclass(frozen=True)
class Failure:
    """A peer leaves because it cannot go on."""

    reason: str


class Course:
    """One peer's way through the run.

    Args:
        experiment: the run's.
        name: the peer's.
        run_id: of the run, which checkpoints belong to.
        data: what the peer exchanges predictions on.
        complete: exchanges that the run has already.
        until: end after so many epochs instead of the experiment's.
    """

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        run_id: str,
        data: Fingerprint,
        complete: int,
        until: int | None = None,
    ) -> None:
        self.experiment, self.name, self.run_id = experiment, name, run_id
        self.layout = experiment.layout(data.samples)
        self.classes = data.classes
        self.complete = complete
        self.end = min(until or experiment.epochs, experiment.epochs) * self.layout.steps_per_epoch
        self.index = 0
        """Of the batch that comes next."""
        self.waiting: list[int] = []
        """Indices of the batches whose result has not been taken, the first of them first."""
        self.reported: dict[str, float] = {}
        self.lookahead = 0
        """So many batches ahead predictions are published."""
        self.in_flight: dict[int, Probabilities] = {}
        """What was published and is not answered, by index."""
        self._restored: set[int] = set()
        self._submitted = 0
        self._hooks: Hooks | None = None
        self._saved_index = -1
        self._saved_at = self._reported_at = time.monotonic()

    @property
    def done(self) -> int:
        """So many batches, from the first, have their result."""
        return self.waiting[0] if self.waiting else self.index

    @property
    def over(self) -> bool:
        """Whether every batch has its result."""
        return self.done == self.end

    def keep(self, hooks: Hooks) -> bool:
        """Keep the loop's state from now on; go on from the newest checkpoint, if there is one."""
        if self.index:
            raise ProtocolError("checkpoints must be set up before the first batch")
        self._hooks = hooks
        found = checkpoint.load(hooks.folder, self.run_id, self.complete)
        if found is None:
            return False
        self.index = self._saved_index = found.index
        self.in_flight = dict(enumerate(found.in_flight, start=found.index))
        self._restored = set(self.in_flight)
        self._submitted = found.index + len(self.in_flight)
        self.reported = found.reported
        hooks.restore(found.state)
        return True

    def next_batch(self) -> Position | None:
        """The position of the batch that comes next, or None at the end; what loads data may be a few batches ahead."""
        if self.index == self.end:
            return None
        self.index += 1
        self.waiting.append(self.index - 1)
        return self.layout.position(self.index - 1)

    def due(self, position: Position) -> list[int]:
        """The indices of the batches whose predictions are due before the result of this one is asked for."""
        return list(range(self._submitted, min(self.layout.index(position) + self.lookahead + 1, self.end)))

    def published(self, position: Position) -> bool:
        """Whether this batch's prediction was in flight in the checkpoint, and is out already."""
        return self.layout.index(position) in self._restored

    def submitted(self, position: Position, prediction: object) -> Probabilities:
        """Note that a prediction goes out, and make it what others may see.

        Raises:
            PredictionError: it is no set of distributions of the batch's shape.
            ProtocolError: it is for another batch than the one that is next.
        """
        index = self.layout.index(position)
        if index != self._submitted:
            raise ProtocolError(
                "a prediction for every batch must be exchanged once, in order",
                expected=str(self.layout.position(self._submitted)),
                got=str(position),
            )
        probabilities = as_probabilities(prediction)
        distribution.check(probabilities, self.layout.rows(position.step), self.classes)
        publish = self.experiment.exchange.publish
        shown = distribution.published(probabilities, publish.temperature, publish.top_k, publish.decimals)
        self._submitted = index + 1
        self.in_flight[index] = shown
        return shown

    def answered(self, position: Position) -> None:
        """Note that a batch has its result."""
        index = self.layout.index(position)
        self.waiting.remove(index)
        del self.in_flight[index]

    def report_due(self, position: Position) -> bool:
        """Whether a report about this batch would be sent: at the end of an epoch, and now and then."""
        return self.ends_epoch(position) or time.monotonic() - self._reported_at > REPORT_SECONDS

    def note_report(self, values: dict[str, float]) -> None:
        """Note what was reported."""
        self.reported |= values
        self._reported_at = time.monotonic()

    def ends_epoch(self, position: Position) -> bool:
        """Whether this is an epoch's last batch."""
        return position.step == self.layout.steps_per_epoch - 1

    def checkpoint_due(self) -> bool:
        """Whether the loop's state should be kept now, before the next batch."""
        if self._hooks is None or self.done == self._saved_index or self.done == 0:
            return False
        settings, since = self.experiment.checkpoint, time.monotonic() - self._saved_at
        if self.done == self.end:
            return True
        if self.done % self.layout.steps_per_epoch == 0:
            return since > EPOCH_CHECKPOINT_SECONDS
        return since > settings.seconds or (settings.steps is not None and self.done % settings.steps == 0)

    def save(self) -> int:
        """Keep the loop's state; every batch before `done` must be on the coordinator's disk.

        Returns:
            The index before which this peer will never ask again.
        """
        if self._hooks is None:
            return 0
        state = Checkpoint(
            self.run_id, self.done, self.reported, self._hooks.state(), [p for _, p in sorted(self.in_flight.items())]
        )
        forgotten = checkpoint.save(self._hooks.folder, self.name, state)
        self._saved_index, self._saved_at = self.done, time.monotonic()
        return forgotten

    def final_values(self, values: dict[str, float]) -> dict[str, float]:
        """What the run's summary gets: `values`, and what was reported last: loss and accuracy as training's."""
        renamed = {f"train_{k}" if k in ("loss", "accuracy") else k: v for k, v in self.reported.items()}
        return {**renamed, **values}

    def left_early(self) -> str:
        """Why a loop that ends here has failed."""
        return f"the training loop ended before {self.layout.position(self.done)} was exchanged"

    def parting(self, error: BaseException | None) -> Literal["done", "away"] | Failure:
        """How a peer leaves whose loop has ended: done, failed, or, after Ctrl-C and its like, away for a while."""
        if error is None:
            return "done" if self.over else Failure(self.left_early())
        if isinstance(error, EntangledError):
            return Failure(str(error))
        return Failure(process.one_line(error)) if isinstance(error, Exception) else "away"


class Place:
    """What a batch is, however it is exchanged."""

    def __init__(self, course: Course, position: Position, ids: SampleIds) -> None:
        self.ids, self.position = ids, position
        self._course = course

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self.position.epoch

    @property
    def step(self) -> int:
        """The place within the epoch, from 0."""
        return self.position.step

    @property
    def last(self) -> bool:
        """Whether it is its epoch's last."""
        return self._course.ends_epoch(self.position)

    @property
    def report_due(self) -> bool:
        """Whether a report would be sent now; for who has to compute it first."""
        return self._course.report_due(self.position)
