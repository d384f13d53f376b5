"""A peer of a run, for any training loop: batches in the coordinator's order, and an exchange for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.datasets import Dataset
from entangled.errors import ProtocolError
from entangled.experiment import Experiment
from entangled.participation.course import Course, Hooks, Place
from entangled.participation.data import Data, fingerprint_of
from entangled.participation.seam import Exchange, SoftTarget
from entangled.participation.tree import Tree


class Batch(Place):
    """One batch of the run. Made by iterating over a `Peer`.

    Attributes:
        ids: sample ids `(rows,)`, int64, in the coordinator's order: places in the peer's data set.
        position: epoch and step, from 0.
        following: the next batch's ids, for whoever prepares it while this one's exchange is under way; None at the end
            of an epoch.
    """

    def __init__(
        self,
        way: Exchange,
        course: Course,
        position: Position,
        ids: SampleIds,
        due: Callable[[Batch], list[Batch]],
        following: SampleIds | None = None,
    ) -> None:
        super().__init__(course, position, ids)
        self._way, self._due, self.following = way, due, following

    def exchange(self, prediction: Any) -> SoftTarget:
        """`submit`, then `result`: publish this model's prediction and wait for everybody else's.

        Args:
            prediction: `(rows, classes)` probabilities, in the order of `ids`: numpy, or anything with `__array__` or
                `__dlpack__`, of any float type. It is what the model says *before* it learns from this batch, without
                dropout and the like.

        Returns:
            The soft target: the others' combined `probabilities`, `(rows, classes)` float32, and λ, `weight`.

        Raises:
            PredictionError: these are no probability distributions of that shape.
            PatienceError: somebody was waited for too long.
            RunFailedError: the run is over for everybody; it says because of whom.
        """
        self.submit(prediction)
        return self.result()

    def submit(self, prediction: Any) -> None:
        """Publish this model's prediction now; there is time to compute before `result`. See `exchange`.

        A prediction that was out already when the loop's state was kept stands, whatever is predicted now.
        """
        if not self._course.published(self.position):
            shown = self._course.submitted(self.position, prediction)
            self._way.submit(self.position, self.ids, shown)

    def result(self) -> SoftTarget:
        """Wait for everybody else's predictions on what was submitted. See `exchange`."""
        target = self._way.result(self.position)
        self._course.answered(self.position)
        return target

    @property
    def due(self) -> list[Batch]:
        """The batches to `submit` a prediction for before this one's `result`: itself, or with look-ahead, others.

        Without look-ahead that is this batch. With a look-ahead of k it is the batch k steps ahead, at the first step
        all batches up to that one, and at the last k steps none:

            for batch in peer:
                for ahead in batch.due:
                    ahead.submit(model(x[ahead.ids]))
                target = batch.result()
        """
        return self._due(self)

    def report(self, **values: float) -> None:
        """Tell how training goes: scalars by name, of the epoch so far, say `loss` and `accuracy`.

        They are shown while the run goes on. Within an epoch only what comes twice a second is sent; what is reported
        with an epoch's last batch always is. The last ones of all become part of the run's summary.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if self.report_due:
            self._way.report(self.position, numbers, epoch_end=self.last)
            self._course.note_report(numbers)


class Peer:
    """This process's part in a run; what `entangled.join` returns.

    A context manager, which says goodbye: done, if every batch was exchanged; else failed, which ends the run for
    everybody with the exception's text. Ctrl-C says nothing: started again, the peer goes on, and the others wait.

    Iterating gives every batch that is left, in order. One thread uses it.

    Attributes:
        name: in the experiment.
        experiment: the run's.
        data: what was given to `join`, or the experiment's own data set.
        classes: number of classes.
    """

    def __init__(
        self,
        way: Exchange,
        experiment: Experiment,
        name: str,
        run_id: str,
        data: Data,
        until: int | None = None,
        mine: Fingerprint | None = None,
    ) -> None:
        """Join over any way to the others.

        Args:
            way: the way.
            experiment: the run's.
            name: this peer's in it.
            run_id: of the run.
            data: a data set, or what is known of one; see `entangled.join`.
            until: end after so many epochs instead of the experiment's.
            mine: the data's fingerprint, where it is known.
        """
        self.way, self.experiment, self.name = way, experiment, name
        self.data = data
        mine = mine or fingerprint_of(data)
        self.classes = mine.classes
        self.course = Course(experiment, name, run_id, mine, way.join(mine), until)
        self._orders: dict[int, SampleIds] = {}
        self._asked = False
        self._finished = False

    @property
    def dataset(self) -> Dataset:
        """`data`, where it is a labelled data set."""
        if not isinstance(self.data, Dataset):
            raise ProtocolError("this peer has no labelled data set", expected="Dataset", got=type(self.data).__name__)
        return self.data

    def keep(self, folder: str | Path, state: Callable[[], Tree], restore: Callable[[Tree], object]) -> bool:
        """Keep the loop's state in checkpoints, so that a killed process costs nothing. Before the first batch.

        Checkpoints are written between batches, as the experiment's `[checkpoint]` says, each whole or not there. With
        them, and a loop that computes the same again from the same state, a run that was killed anywhere ends with the
        same weights to the bit. Without them, a peer that comes back goes through the whole run again, and gets the
        same answers.

        Args:
            folder: for the checkpoints, this peer's alone.
            state: gives everything that the next batch depends on: weights, optimizer, random state, counters. Mappings
                and lists, nested, of arrays of any framework, bytes, text, and numbers.
            restore: is called at once, with what `state` gave, if there is a checkpoint; arrays are numpy's.

        Returns:
            Whether `restore` was called.

        Raises:
            LogError: the folder holds another run's checkpoints.
        """
        if not self.course.keep(Hooks(Path(folder), state, restore)):
            return False
        for index, prediction in self.course.in_flight.items():
            again = self._batch(self.course.layout.position(index))
            self.way.submit(again.position, again.ids, prediction)
        return True

    def look_ahead(self, step_seconds: Callable[[], float] = float) -> int:
        """How many batches ahead predictions are published: the experiment's `exchange.lookahead`. Before any batch.

        Args:
            step_seconds: measures what a step of the loop takes; called if the experiment says "auto" and nothing is
                decided yet. The look-ahead then hides the slowest peer's round trip. Without, this peer says nothing.
        """
        if not self._asked:
            self.course.lookahead, self._asked = self.way.lookahead(step_seconds), True
        return self.course.lookahead

    def _due(self, batch: Batch) -> list[Batch]:
        self.look_ahead()
        due = map(self.course.layout.position, self.course.due(batch.position))
        return [batch if position == batch.position else self._batch(position) for position in due]

    def __iter__(self) -> Peer:
        return self

    def __next__(self) -> Batch:
        self._save_if_due()
        position = self.course.next_batch()
        if position is None:
            raise StopIteration
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= position.epoch}
        return self._batch(position)

    def _batch(self, position: Position) -> Batch:
        if position.epoch not in self._orders:
            self._orders[position.epoch] = self.way.order(position.epoch)
        layout, order = self.course.layout, self._orders[position.epoch]
        following = None if self.course.ends_epoch(position) else layout.batch(order, position.step + 1)
        return Batch(self.way, self.course, position, layout.batch(order, position.step), self._due, following)

    def finish(self, **values: float) -> None:
        """Say that this peer is done, with its final scalars, which go into the run's summary.

        Leaving the `with` block does it, too, with the scalars that were reported last. `train_loss`, `train_accuracy`,
        `test_loss` and `test_accuracy` are those that the summary's table shows.

        Raises:
            ProtocolError: not every batch has been exchanged.
        """
        if not self.course.over:
            raise ProtocolError(self.course.left_early())
        self._save_if_due()
        self.way.settle(self.course.done)
        self.way.finish(self.course.final_values({name: float(value) for name, value in values.items()}))
        self._finished = True

    def fail(self, reason: str) -> None:
        """Say that this peer cannot go on, which ends the run for everybody. Never raises."""
        self._finished = True
        self.way.fail(reason)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        match self.course.parting(error):
            case "done":
                self.finish()
            case "away":
                self.way.close()
            case failure:
                self.fail(failure.reason)

    def _save_if_due(self) -> None:
        if self.course.checkpoint_due():
            self.way.settle(self.course.done)
            self.way.forget(self.course.save())
