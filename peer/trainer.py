"""Trains one learner as a peer of a run. Knows positions, metrics and files, and no framework."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from entangled import atomic, faults
from entangled.datasets import Dataset
from entangled.participation.peer import Batch, Peer
from entangled.participation.seam import SoftTarget
from peer.board import Board
from peer.data import batch as of_dataset
from peer.learner import Inputs, Learner

MEASURED_STEPS = 5
"""Where the look-ahead is to hide a round trip behind them."""

log = logging.getLogger(__name__)


def train(peer: Peer, learner: Learner, data: Dataset, folder: Path, initial_weights: Path | None = None) -> None:
    """Train one peer, from the beginning or from its last checkpoint, to the end.

    Args:
        peer: its part in the run.
        learner: what it trains, untrained.
        data: the samples that predictions are exchanged on; the labels are this peer's own affair.
        folder: gets `initial.weights.h5`, `final.keras`, `metrics.jsonl`, `checkpoints/` and `tensorboard/`.
        initial_weights: a file to take them from, instead of the experiment's seed.
    """
    if initial_weights is not None:
        learner.load_weights(initial_weights)
    _Training(peer, learner, data, folder).run()


def evaluate(learner: Learner, x: Inputs, y: npt.NDArray[np.int64], size: int = 1000) -> tuple[float, float]:
    """Accuracy, and mean cross-entropy (probabilities clipped at 1e-7), on labelled samples, `size` at once."""
    correct, loss = 0, 0.0
    for start in range(0, len(x), size):
        labels = y[start : start + size]
        p = learner.predict(x[start : start + size])
        correct += int((p.argmax(axis=1) == labels).sum())
        loss -= float(np.log(np.clip(p[np.arange(len(labels)), labels], 1e-7, 1.0)).sum(dtype=np.float64))
    return correct / len(x), loss / len(x)


class _Training:
    def __init__(self, peer: Peer, learner: Learner, data: Dataset, folder: Path) -> None:
        self._peer, self._learner, self._data, self._folder = peer, learner, data, folder
        self._losses: list[float] = []
        """Of this epoch's batches so far."""
        self._correct = self._rows = 0
        """Right predictions, of so many samples, in this epoch so far."""
        self._weight = 0.0
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
        tested: dict[str, float] = {}
        if len(self._data.test_x):
            tested["test_accuracy"], tested["test_loss"] = evaluate(self._learner, self._data.test_x, self._data.test_y)
        faults.point(self._peer.name, "before leave")
        self._peer.finish(**tested)
        faults.point(self._peer.name, "after leave")

    def _step(self, batch: Batch) -> None:
        for ahead in batch.due:
            ahead.submit(self._learner.predict(self._data.x[ahead.ids]))
        x, labels = of_dataset(self._data, batch.ids)  # while the exchange is under way
        target = batch.result()
        faults.point(self._peer.name, "before update")
        loss, right = self._learner.update(x, labels, target)
        self._losses.append(loss)
        self._correct += right
        self._rows += len(batch)
        self._weight = target.weight
        if batch.report_due:
            batch.report(**self._running())

    def _step_seconds(self) -> float:
        """What a step takes without any exchange. Leaves the learner as it was."""
        before = list(self._learner.state())
        ids = np.arange(min(self._peer.experiment.batch_size, len(self._data.x)))
        x, labels = of_dataset(self._data, ids)
        times: list[float] = []
        for _ in range(1 + MEASURED_STEPS):  # the first is slow: it traces
            began = time.monotonic()
            self._learner.update(x, labels, SoftTarget(self._learner.predict(x), 0.0))
            times.append(time.monotonic() - began)
        self._learner.restore(before)
        return median(times[1:])

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
            "losses": np.array(self._losses, np.float64),
            "correct": self._correct,
            "rows": self._rows,
            "weight": self._weight,
            "metrics_bytes": self._metrics.stat().st_size,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._learner.restore(state["learner"])
        self._losses = state["losses"].tolist()
        self._correct, self._rows, self._weight = state["correct"], state["rows"], state["weight"]
        with self._metrics.open("r+b") as lines:
            lines.truncate(state["metrics_bytes"])  # what was trained on after the checkpoint is trained on again
        log.info("peer %s goes on from its checkpoint", self._peer.name)


def _write_model(path: Path, save: Callable[[Path], object]) -> None:
    """Have the framework save to a scratch folder first: HDF5 crashes the process where a disk is full."""
    with tempfile.TemporaryDirectory(prefix="entangled-") as folder:
        scratch = Path(folder) / path.name
        save(scratch)
        content = scratch.read_bytes()
    atomic.write(path, lambda file: file.write_bytes(content))
