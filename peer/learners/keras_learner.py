"""What learners of Keras models have in common on every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from entangled.distribution import Probabilities
from entangled.errors import LogError
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from peer.learner import Inputs, Meet, State
from peer.loss import EntangledLoss
from peer.models import build

PLAIN = {"core", "convolutional", "pooling", "reshaping", "merging", "activations"}
"""Keras' own kinds of layers that do the same in training; not among them are normalisation and regularisation, such as
dropout, recurrent layers and attention, which may drop out, and augmentation."""


class KerasLearner(ABC):
    """A Keras model, its optimizer and loss; what computes comes with the backend."""

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        optimizer.build(model.trainable_variables)

    def place(self, array: Inputs) -> Inputs:
        """See `peer.learner.Learner.place`."""
        return array

    @abstractmethod
    def predict(self, x: Inputs) -> Probabilities:
        """See `peer.learner.Learner.predict`."""

    @abstractmethod
    def update(self, x: Inputs, labels: npt.NDArray[np.float32], target: SoftTarget) -> tuple[float, int]:
        """See `peer.learner.Learner.update`."""

    def step(self, x: Inputs, labels: npt.NDArray[np.float32], exchange: Meet) -> tuple[float, int]:
        """See `peer.learner.Learner.step`."""
        return self.update(x, labels, exchange(self.predict(x)))

    def state(self) -> State:
        """See `peer.learner.Learner.state`."""
        return [_numpy(v) for v in self._variables()]

    def restore(self, state: State) -> None:
        """See `peer.learner.Learner.restore`."""
        variables = self._variables()
        theirs, ours = ([tuple(v.shape) for v in vs] for vs in (state, variables))
        if theirs != ours:
            raise LogError("a checkpoint is of another model", expected=str(ours), got=str(theirs))
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)

    def weights(self) -> State:
        """See `peer.learner.Learner.weights`."""
        return self.model.get_weights()

    def load_weights(self, path: Path) -> None:
        """See `peer.learner.Learner.load_weights`."""
        self.model.load_weights(path)

    def save_weights(self, path: Path) -> None:
        """See `peer.learner.Learner.save_weights`."""
        self.model.save_weights(path)

    def save(self, path: Path) -> None:
        """See `peer.learner.Learner.save`."""
        self.model.save(path)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]


def same_in_training(model: Any) -> bool:
    """Whether `training=True` and `training=False` are one and the same to a model: one of layers known to be so."""
    if isinstance(model, keras.Model):  # one of a class of the user's own may do anything
        ours = type(model).__module__.startswith("keras.src.models.")
        return ours and all(map(same_in_training, model.layers))
    kind = type(model).__module__.removeprefix("keras.src.layers.").partition(".")[0]
    plain = kind in PLAIN and not isinstance(model, keras.layers.Lambda | keras.layers.Wrapper)
    return plain and getattr(model, "quantization_mode", None) is None


def parts(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> tuple[Any, Any, EntangledLoss]:
    """Model, optimizer and loss that the experiment describes for one of its peers, untrained."""
    settings = experiment.peers[peer]
    model = build(settings.model, shape, classes, experiment.peer_seed(peer))
    arguments = settings.optimizer.model_dump(exclude={"name"})
    optimizer = keras.optimizers.get({"class_name": settings.optimizer.name, "config": arguments})
    return model, optimizer, EntangledLoss(experiment.exchange.direction)


def _numpy(variable: Any) -> npt.NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable.value))
