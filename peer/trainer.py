"""Trains one Keras model on TensorFlow against an `Exchange`."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from entangled import atomic, devices, faults
from entangled.alignment import Position, SampleIds
from entangled.datasets import Dataset
from entangled.distribution import Probabilities
from entangled.errors import DataError, LogError
from entangled.experiment import Experiment
from entangled.participation.seam import Exchange, SoftTarget
from peer import checkpoint
from peer.data import batch, one_hot
from peer.loss import EntangledLoss
from peer.models import build

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
EPOCH_CHECKPOINT_SECONDS = 1.0
"""Shorter epochs than this do not each get a checkpoint."""


def configure(device: str, threads: int, memory: float | None = None) -> None:
    """Choose device and CPU threads, and make every operation deterministic. Before anything else of TensorFlow's.

    The graph optimizer must not regroup sums, either: without that, a compiled step equals the notebook's eager one to
    the bit.

    Args:
        device: `auto` takes the first GPU if there is one, `cpu` none, `gpu:N` the one of that number.
        threads: for one operation; 0 leaves it to TensorFlow.
        memory: of the GPU's, a share up to 1, MiB above that; None lets it grow with what is needed.

    Raises:
        DataError: there is no such GPU here, or it has less memory.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    gpus = tf.config.list_physical_devices("GPU")
    if device == "auto":
        chosen = gpus[:1]
    elif device == "cpu":
        chosen = []
    else:
        number = devices.number(device)
        if number >= len(gpus):
            raise DataError(f"there is no {device} here: TensorFlow sees {len(gpus)} GPUs")
        chosen = [gpus[number]]
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        if memory is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=devices.memory_mib(memory, gpus.index(gpu)))
            tf.config.set_logical_device_configuration(gpu, [limit])


class Learner:
    """A model with its optimizer and the entangled step; knows no exchange."""

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss) -> None:
        self.model = model
        self.optimizer = optimizer
        self._loss = loss
        optimizer.build(model.trainable_variables)
        self._traced: dict[tuple[object, ...], Any] = {}

    def predict(self, x: Any) -> Probabilities:
        """The probabilities `(rows, classes)` for a batch, `training=False`."""
        return self._call(self._predict_graph, tf.constant(x)).numpy()

    def update(self, x: Any, labels: Any, target: SoftTarget) -> tuple[float, int]:
        """One step of the optimizer, `training=True`; the batch's loss and the number of right predictions."""
        loss, correct = self._call(
            self._update_graph,
            tf.constant(x),
            tf.constant(labels),
            tf.constant(target.probabilities),
            tf.constant(target.weight, tf.float32),
        )
        return float(loss), int(correct)

    def _call(self, graph: Callable[..., Any], *tensors: Any) -> Any:
        """Call a graph traced for just these shapes.

        Without tf.function's own dispatch, which costs a small model half of its step.
        """
        key = graph.__name__, *(tuple(t.shape) for t in tensors)
        if key not in self._traced:
            self._traced[key] = tf.function(graph).get_concrete_function(*tensors)
        return self._traced[key](*tensors)

    def state(self) -> list[npt.NDArray[Any]]:
        """Every variable of the model, random state included, and of the optimizer."""
        return [np.asarray(v.numpy()) for v in self._variables()]

    def restore(self, state: Sequence[npt.NDArray[Any]]) -> None:
        """Take over what `state` gave.

        Raises:
            LogError: it is another model's.
        """
        variables = self._variables()
        theirs, ours = ([tuple(v.shape) for v in vs] for vs in (state, variables))
        if theirs != ours:
            raise LogError("a checkpoint is of another model", expected=str(ours), got=str(theirs))
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)

    def _variables(self) -> list[Any]:
        return [v.value for v in (*self.model.variables, *self.optimizer.variables)]

    def evaluate(self, x: Any, y: Any, classes: int, size: int = 1000) -> tuple[float, float]:
        """Accuracy, and mean cross-entropy, on labelled samples."""
        cross_entropy: Any = keras.losses.CategoricalCrossentropy()
        correct, loss = 0, 0.0
        for start in range(0, len(x), size):
            labels = y[start : start + size]
            p = self.predict(x[start : start + size])
            correct += int((p.argmax(axis=1) == labels).sum())
            loss += float(cross_entropy(one_hot(labels, classes), p)) * len(labels)
        return correct / len(x), loss / len(x)

    def _predict_graph(self, x: Any) -> Any:
        return self.model(x, training=False)

    def _update_graph(self, x: Any, labels: Any, others: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            # Behind an identity, Keras takes the probabilities as they are, clipped at 1e-7; else it would find the
            # logits that the softmax made them from.
            own = tf.identity(self.model(x, training=True))
            loss = self._loss(labels, own, others, weight)
            objective = tf.add_n([loss, *self.model.losses]) if self.model.losses else loss
        gradients = tape.gradient(objective, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        right = tf.equal(tf.argmax(own, axis=1), tf.argmax(labels, axis=1))
        return loss, tf.reduce_sum(tf.cast(right, tf.int32))


def learner(experiment: Experiment, peer: str, data: Dataset) -> Learner:
    """The learner that the experiment describes for one of its peers, untrained."""
    settings = experiment.peers[peer]
    model = build(settings.model, data.x.shape[1:], data.classes, experiment.peer_seed(peer))
    arguments = settings.optimizer.model_dump(exclude={"name"})
    optimizer = keras.optimizers.get({"class_name": settings.optimizer.name, "config": arguments})
    return Learner(model, optimizer, EntangledLoss(experiment.exchange.direction))


def train(
    experiment: Experiment,
    peer: str,
    data: Dataset,
    exchange: Exchange,
    folder: Path,
    run_id: str,
    until: int | None = None,
    initial_weights: Path | None = None,
) -> Learner:
    """Train one peer, from the beginning or from its last checkpoint, to the end.

    Args:
        experiment: the run's.
        peer: the name in it.
        data: samples to exchange predictions on; the labels are this peer's own affair.
        exchange: the way to the others.
        folder: gets `initial.weights.h5`, `final.keras`, `metrics.jsonl`, `checkpoints/` and `tensorboard/`.
        run_id: of the run, which checkpoints belong to.
        until: end after so many epochs instead of the experiment's.
        initial_weights: a file to take them from, instead of the experiment's seed.

    Returns:
        The trained learner.
    """
    return _Training(experiment, peer, data, exchange, folder, run_id, until, initial_weights).run()


class _Training:
    def __init__(
        self,
        experiment: Experiment,
        peer: str,
        data: Dataset,
        exchange: Exchange,
        folder: Path,
        run_id: str,
        until: int | None,
        initial_weights: Path | None,
    ) -> None:
        self._settings, self._peer, self._data, self._exchange = experiment.checkpoint, peer, data, exchange
        self._folder, self._run_id = folder, run_id
        self._layout = experiment.layout(len(data.x))
        self._epochs = min(until or experiment.epochs, experiment.epochs)
        self._learner = learner(experiment, peer, data)
        if initial_weights is not None:
            self._learner.model.load_weights(initial_weights)
        self._index = 0
        self._losses: list[float] = []
        self._correct = 0
        self._weight = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        self._saved_at = self._reported_at = self._epoch_began = time.monotonic()

    def run(self) -> Learner:
        self._restore(self._exchange.join(self._data.fingerprint()))
        board: Any = tf.summary.create_file_writer(str(self._folder / "tensorboard"))
        end = self._epochs * self._layout.steps_per_epoch
        with self._metrics.open("a", encoding="utf-8") as lines:
            while self._index < end:
                epoch = self._layout.position(self._index).epoch
                self._train_epoch(epoch)
                line = self._epoch_values(epoch)
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                with board.as_default(step=epoch):
                    for name in ("loss", "accuracy", "weight"):
                        tf.summary.scalar(name, line[name])
                self._losses, self._correct = [], 0
                if self._index == end or time.monotonic() - self._saved_at > EPOCH_CHECKPOINT_SECONDS:
                    self._save()
        board.close()
        _write_keras(self._folder / "final.keras", self._learner.model.save)
        self._finish()
        return self._learner

    def _train_epoch(self, epoch: int) -> None:
        """The rest of an epoch's batches."""
        order = self._exchange.order(epoch)
        self._epoch_began = time.monotonic()
        for step in range(self._layout.position(self._index).step, self._layout.steps_per_epoch):
            self._step(Position(epoch, step), self._layout.batch(order, step))
            now, last = time.monotonic(), step == self._layout.steps_per_epoch - 1
            if now - self._reported_at > REPORT_SECONDS and not last:
                self._reported_at = now
                self._exchange.report(Position(epoch, step), self._running())
            due = self._settings.steps is not None and self._index % self._settings.steps == 0
            if (due or now - self._saved_at > self._settings.seconds) and not last:
                self._save()

    def _step(self, position: Position, ids: SampleIds) -> None:
        x, labels = batch(self._data, ids)
        target = self._exchange.exchange(position, ids, self._learner.predict(x))
        faults.point(self._peer, "before update")
        loss, right = self._learner.update(x, labels, target)
        self._losses.append(loss)
        self._correct += right
        self._weight = target.weight
        self._index += 1

    def _running(self) -> dict[str, float]:
        """Means over this epoch's batches so far."""
        done = min(len(self._losses) * self._layout.batch_size, self._layout.samples)
        return {"loss": float(np.mean(self._losses)), "accuracy": self._correct / done}

    def _epoch_values(self, epoch: int) -> dict[str, float]:
        values = self._running()
        self._exchange.report(Position(epoch, self._layout.steps_per_epoch - 1), values, epoch_end=True)
        return {"epoch": epoch, **values, "weight": self._weight, "seconds": time.monotonic() - self._epoch_began}

    def _finish(self) -> None:
        last = json.loads(self._metrics.read_text("utf-8").splitlines()[-1])
        accuracy, loss = self._learner.evaluate(self._data.test_x, self._data.test_y, self._data.classes)
        faults.point(self._peer, "before leave")
        self._exchange.finish(
            {
                "train_accuracy": last["accuracy"],
                "train_loss": last["loss"],
                "test_accuracy": accuracy,
                "test_loss": loss,
            }
        )

    def _save(self) -> None:
        self._exchange.settle(self._index)
        atomic.sync(self._metrics)
        losses = np.array(self._losses, np.float64)
        size = self._metrics.stat().st_size
        state = checkpoint.Checkpoint(
            self._run_id, self._index, self._learner.state(), losses, self._correct, self._weight, size
        )
        self._exchange.forget(checkpoint.save(self._folder / "checkpoints", self._peer, state))
        self._saved_at = time.monotonic()

    def _restore(self, complete: int) -> None:
        found = checkpoint.load(self._folder / "checkpoints", self._run_id, complete)
        if found is None:
            _write_keras(self._folder / "initial.weights.h5", self._learner.model.save_weights)
            self._metrics.write_bytes(b"")
            return
        self._learner.restore(found.variables)
        self._index, self._losses = found.index, found.losses.tolist()
        self._correct, self._weight = found.correct, found.weight
        with self._metrics.open("r+b") as lines:
            lines.truncate(found.metrics_bytes)  # what was trained on after the checkpoint is trained on again
        log.info("peer %s goes on at %s", self._peer, self._layout.position(self._index))


def _write_keras(path: Path, save: Callable[[Path], object]) -> None:
    """Have Keras save to a scratch folder first: HDF5 crashes the process where a disk is full."""
    with tempfile.TemporaryDirectory(prefix="entangled-") as folder:
        scratch = Path(folder) / path.name
        save(scratch)
        content = scratch.read_bytes()
    atomic.write(path, lambda file: file.write_bytes(content))
