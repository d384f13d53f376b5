"""Trains one Keras model on TensorFlow against an `Exchange`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from entangled.alignment import Position
from entangled.datasets import Dataset
from entangled.distribution import Probabilities
from entangled.experiment import Experiment
from peer.data import batch, one_hot
from peer.exchange import Exchange, SoftTarget
from peer.loss import EntangledLoss
from peer.models import build

REPORT_SECONDS = 0.5


def configure(device: str, threads: int) -> None:
    """Choose device and CPU threads, and make every operation deterministic. Before anything else of TensorFlow's.

    The graph optimizer must not regroup sums, either: without that, a compiled step equals the notebook's eager one to
    the bit.

    Args:
        device: `auto` takes the first GPU if there is one, `cpu` none, `gpu:N` the one of that number.
        threads: for one operation; 0 leaves it to TensorFlow.
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
        number = int(device.partition(":")[2] or 0)
        if number >= len(gpus):
            raise ValueError(f"there is no {device} here; TensorFlow sees {len(gpus)} GPUs")
        chosen = [gpus[number]]
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        tf.config.experimental.set_memory_growth(gpu, True)


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
    seen: Callable[[Position, Probabilities], None] | None = None,
) -> None:
    """Train one peer from beginning to end.

    Args:
        experiment: the run's.
        peer: the name in it.
        data: samples to exchange predictions on; the labels are this peer's own affair.
        exchange: the way to the others.
        folder: gets `initial.weights.h5`, `final.keras`, `metrics.jsonl` and `tensorboard/`.
        seen: is shown every prediction that was exchanged; for tests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    self = learner(experiment, peer, data)
    self.model.save_weights(folder / "initial.weights.h5")
    exchange.join(data.fingerprint())
    board: Any = tf.summary.create_file_writer(str(folder / "tensorboard"))
    layout = experiment.layout(len(data.x))
    values: dict[str, float] = {}
    reported = time.monotonic()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        for epoch in range(layout.epochs):
            order = exchange.order(epoch)
            began, losses, correct, weight = time.monotonic(), list[float](), 0, 0.0
            for step in range(layout.steps_per_epoch):
                position, ids = Position(epoch, step), layout.batch(order, step)
                x, labels = batch(data, ids)
                prediction = self.predict(x)
                if seen is not None:
                    seen(position, prediction)
                target = exchange.exchange(position, ids, prediction)
                loss, right = self.update(x, labels, target)
                losses.append(loss)
                correct, weight = correct + right, target.weight
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    done = step * layout.batch_size + len(ids)
                    exchange.report(position, {"loss": float(np.mean(losses)), "accuracy": correct / done})
            values = {"loss": float(np.mean(losses)), "accuracy": correct / layout.samples}
            exchange.report(Position(epoch, layout.steps_per_epoch - 1), values, epoch_end=True)
            line = {"epoch": epoch, **values, "weight": weight, "seconds": time.monotonic() - began}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            with board.as_default(step=epoch):
                for name in ("loss", "accuracy", "weight"):
                    tf.summary.scalar(name, line[name])
    board.close()
    self.model.save(folder / "final.keras")
    accuracy, loss = self.evaluate(data.test_x, data.test_y, data.classes)
    exchange.finish(
        {
            "train_accuracy": values["accuracy"],
            "train_loss": values["loss"],
            "test_accuracy": accuracy,
            "test_loss": loss,
        }
    )
