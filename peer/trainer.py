"""Trains one learner as a peer of a run. Knows positions, metrics and files, and no framework."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from entangled import atomic, faults
from entangled.alignment import Position, SampleIds
from entangled.datasets import Dataset, Unlabelled
from entangled.distribution import Probabilities
from entangled.errors import DataError
from entangled.participation.peer import Batch, Peer
from entangled.participation.seam import SoftTarget
from peer.board import Board
from peer.data import one_hot
from peer.learner import Inputs, Learner
from peer.private import Lessons

MEASURED_STEPS, MEASURED_SECONDS = 5, 0.5
"""Where the look-ahead is to hide a round trip behind steps: at least so many, and for at least so long."""

log = logging.getLogger(__name__)

MOST_CLASSES = 16
"""So many classes, and no more, have their accuracies reported one by one."""


def train(
    peer: Peer,
    learner: Learner,
    data: Dataset | Unlabelled,
    folder: Path,
    initial_weights: Path | None = None,
    private: Lessons | None = None,
) -> None:
    """Train one peer, from the beginning or from its last checkpoint, to the end.

    Args:
        peer: its part in the run.
        learner: what it trains, untrained.
        data: the samples that predictions are exchanged on; the labels are this peer's own affair.
        folder: gets `initial.weights.h5`, `final.keras`, `metrics.jsonl`, `checkpoints/` and `tensorboard/`.
        initial_weights: a file to take them from, instead of the experiment's seed.
        private: what it learns from, if not from `data`.
    """
    if initial_weights is not None:
        learner.load_weights(initial_weights)
    _Training(peer, learner, data, folder, private).run()


class Evaluation(NamedTuple):
    """How good a model is on labelled samples."""

    accuracy: float
    loss: float
    """Mean cross-entropy, probabilities clipped at 1e-7."""
    by_class: dict[int, float]
    """Accuracy on each class's samples, where there are some."""


def evaluate(learner: Learner, x: Inputs, y: npt.NDArray[np.int64], size: int = 1000) -> Evaluation:
    """Evaluate a model on labelled samples `x`, one or more, with class numbers `y`; `size` samples at once."""
    right, loss = np.zeros(len(x), bool), 0.0
    for start in range(0, len(x), size):
        labels = y[start : start + size]
        p = learner.predict(x[start : start + size])
        right[start : start + size] = p.argmax(axis=1) == labels
        loss -= float(np.log(np.clip(p[np.arange(len(labels)), labels], 1e-7, 1.0)).sum(dtype=np.float64))
    by_class = {int(c): float(right[y == c].mean()) for c in np.unique(y)}
    return Evaluation(float(right.mean()), loss / len(x), by_class)


class _Training:
    def __init__(
        self, peer: Peer, learner: Learner, data: Dataset | Unlabelled, folder: Path, private: Lessons | None
    ) -> None:
        self._peer, self._learner, self._data, self._folder = peer, learner, data, folder
        self._private = private
        self._baselines = private.baselines if private else {}
        self._losses: list[float] = []
        """Of this epoch's batches so far."""
        self._correct = self._rows = 0
        """Right predictions, of so many samples, in this epoch so far."""
        self._weight = 0.0
        self._prepared: dict[Position, tuple[Inputs, Inputs]] = {}
        """Inputs and labels of batches to come, as many as the look-ahead, or one."""
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"

    def run(self) -> None:
        if not self._peer.keep(self._folder / "checkpoints", self._state, self._restore):
            _write_model(self._folder / "initial.weights.h5", self._learner.save_weights)
            self._metrics.write_bytes(b"")
        self._peer.look_ahead(self._step_seconds)
        board = Board(self._folder / "tensorboard")
        began = time.monotonic()
        for batch in self._peer:
            self._step(batch)
            if batch.last:
                values = {**self._running(), "weight": self._weight}
                self._write_metrics({"epoch": batch.epoch, **values, "seconds": time.monotonic() - began})
                board.write(batch.epoch, values)
                self._losses, self._correct, self._rows, began = [], 0, 0, time.monotonic()
        board.close()
        _write_model(self._folder / "final.keras", self._learner.save)
        tested = self._tested()
        faults.point(self._peer.name, "before leave")
        self._peer.finish(**tested)
        faults.point(self._peer.name, "after leave")

    def _tested(self) -> dict[str, float]:
        """Test figures of the model and the baselines; by class, too, where there are others to compare with."""
        data = self._private.data if self._private else self._data
        if not isinstance(data, Dataset) or not len(data.test_x):
            return {}
        own = evaluate(self._learner, data.test_x, data.test_y)
        values = {"test_accuracy": own.accuracy, "test_loss": own.loss}
        if self._private:
            values |= _by_class("test", own)
        for name, baseline in self._baselines.items():
            found = evaluate(baseline.learner, data.test_x, data.test_y)
            values |= {f"{name}_accuracy": found.accuracy, **_by_class(name, found)}
        return values

    def _step(self, batch: Batch) -> None:
        if self._peer.look_ahead() == 0 and self._shared_labels:
            x, labels = self._inputs(batch.position, batch.ids)
            loss, right = self._learner.step(x, labels, lambda own: self._result(batch, own))
            rows = len(batch)
        else:
            loss, right, rows = self._learn(batch, self._result(batch))
        self._losses.append(loss)
        self._correct += right
        self._rows += rows
        if batch.report_due:
            batch.report(**self._running())

    def _result(self, batch: Batch, own: Probabilities | None = None) -> SoftTarget:
        """Publish what is due, `own` if that is this batch's prediction, and wait for the soft target."""
        for due in batch.due:
            due.submit(self._predicted(due) if own is None else own)
        if own is not None and batch.following is not None:  # there is time now
            self._prepare(Position(batch.epoch, batch.step + 1), batch.following)
        target = batch.result()
        self._weight = target.weight
        faults.point(self._peer.name, "before update")
        return target

    def _predicted(self, due: Batch) -> Probabilities:
        if self._shared_labels:
            return self._learner.predict(self._prepare(due.position, due.ids)[0])
        return self._learner.predict(self._data.x[due.ids])

    @property
    def _shared_labels(self) -> bool:
        """Whether the labels learned from are those of the exchanged samples."""
        return self._private is None and isinstance(self._data, Dataset)

    def _prepare(self, position: Position, ids: SampleIds) -> tuple[Inputs, Inputs]:
        """Inputs and one-hot labels of a batch, where the model computes; kept until `_inputs` takes them."""
        if not isinstance(self._data, Dataset):
            raise DataError("there are no labels to learn from")
        labels = one_hot(self._data.y[ids], self._data.classes)
        prepared = self._learner.place(self._data.x[ids]), self._learner.place(labels)
        self._prepared[position] = prepared
        return prepared

    def _inputs(self, position: Position, ids: SampleIds) -> tuple[Inputs, Inputs]:
        """What was prepared of a batch; or it is now."""
        if position not in self._prepared:
            self._prepare(position, ids)
        return self._prepared.pop(position)

    def _step_seconds(self) -> float:
        """What a step takes without any exchange, if nothing else disturbs it. Leaves the learner as it was.

        The fastest one counts: the others start at the same time, and a look-ahead that is too short costs more than
        one that is too long.
        """
        before = list(self._learner.state())
        ids = np.arange(min(self._peer.experiment.batch_size, len(self._data.x)))
        x = self._data.x[ids]
        times: list[float] = []
        while len(times) < 1 + MEASURED_STEPS or sum(times[1:]) < MEASURED_SECONDS:
            began = time.monotonic()
            self._update(Position(0, 0), ids, SoftTarget(self._learner.predict(x), 0.0))
            times.append(time.monotonic() - began)
        self._learner.restore(before)
        return min(times[1:])  # the first is slow: it traces

    def _learn(self, batch: Batch, target: SoftTarget) -> tuple[float, int, int]:
        """Update the model, and the baselines: the batch's loss, right predictions, and of how many."""
        for baseline in self._baselines.values():
            baseline.learn(self._peer.course.layout.index(batch.position))
        return self._update(batch.position, batch.ids, target)

    def _update(self, position: Position, ids: SampleIds, target: SoftTarget) -> tuple[float, int, int]:
        """Update the model with the batch at that position, of these public or shared samples."""
        if self._private is not None:
            mine, labels = self._private.batches.batch(self._peer.course.layout.index(position))
            return *self._learner.update(mine, labels, target, self._data.x[ids]), len(mine)
        return *self._learner.update(*self._inputs(position, ids), target), len(ids)

    def _running(self) -> dict[str, float]:
        """Means over this epoch's batches so far."""
        return {"loss": float(np.mean(self._losses)), "accuracy": self._correct / self._rows}

    def _write_metrics(self, line: dict[str, float]) -> None:
        with self._metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def _state(self) -> dict[str, Any]:
        atomic.sync(self._metrics)
        return {
            "learner": list(self._learner.state()),
            "baselines": {name: list(b.learner.state()) for name, b in self._baselines.items()},
            "losses": np.array(self._losses, np.float64),
            "correct": self._correct,
            "rows": self._rows,
            "weight": self._weight,
            "metrics_bytes": self._metrics.stat().st_size,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._learner.restore(state["learner"])
        for name, baseline in self._baselines.items():
            baseline.learner.restore(state["baselines"][name])
        self._losses = state["losses"].tolist()
        self._correct, self._rows, self._weight = state["correct"], state["rows"], state["weight"]
        with self._metrics.open("r+b") as lines:
            lines.truncate(state["metrics_bytes"])  # what was trained on after the checkpoint is trained on again
        log.info("peer %s goes on from its checkpoint", self._peer.name)


def _by_class(name: str, found: Evaluation) -> dict[str, float]:
    if max(found.by_class) >= MOST_CLASSES:
        return {}
    return {f"{name}_accuracy_{c}": accuracy for c, accuracy in found.by_class.items()}


def _write_model(path: Path, save: Callable[[Path], object]) -> None:
    """Have the framework save to a scratch folder first: HDF5 crashes the process where a disk is full."""
    with tempfile.TemporaryDirectory(prefix="entangled-") as folder:
        scratch = Path(folder) / path.name
        save(scratch)
        content = scratch.read_bytes()
    atomic.write(path, lambda file: file.write_bytes(content))
