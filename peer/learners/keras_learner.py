"""What learners of Keras models have in common on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from entangled.errors import LogError
from entangled.experiment import Experiment
from peer.learner import State
from peer.loss import EntangledLoss
from peer.models import build


class KerasLearner:
    """A Keras model, its optimizer and loss; what computes comes with the backend."""

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        optimizer.build(model.trainable_variables)

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


def parts(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> tuple[Any, Any, EntangledLoss]:
    """Model, optimizer and loss that the experiment describes for one of its peers, untrained."""
    settings = experiment.peers[peer]
    model = build(settings.model, shape, classes, experiment.peer_seed(peer))
    arguments = settings.optimizer.model_dump(exclude={"name"})
    optimizer = keras.optimizers.get({"class_name": settings.optimizer.name, "config": arguments})
    return model, optimizer, EntangledLoss(experiment.exchange.direction)


def _numpy(variable: Any) -> npt.NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable.value))
