"""Keras models on JAX: one jitted step, whose variables stay where they are updated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from entangled.distribution import Probabilities
from entangled.errors import DataError
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from peer.learner import Inputs, State
from peer.learners.keras_learner import KerasLearner, parts
from peer.loss import EntangledLoss


def configure(device: str, threads: int, memory: float | None = None, peers: int = 1) -> None:
    """Check that the device is there; `peer.backends` has chosen it, and deterministic operations, in the environment.

    Args:
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        threads: as the experiment's.
        memory: as the experiment's.
        peers: of this process.

    Raises:
        DataError: there is no such GPU here.
    """
    if device.startswith("gpu") and jax.default_backend() != "gpu":
        raise DataError(f"there is no {device} here: JAX sees none")


class JaxLearner(KerasLearner):
    """`peer.learner.Learner` on JAX.

    The step takes the variables' buffers over and gives them back updated, so that there is one copy of them. Keras'
    own variables are brought up to date when somebody looks.
    """

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss) -> None:
        super().__init__(model, optimizer, loss)
        self._predict = jax.jit(self._predict_pure)
        self._step = jax.jit(self._step_pure, donate_argnums=(0, 1, 2))
        self._take_over()

    def predict(self, x: Inputs) -> Probabilities:
        """See `peer.learner.Learner.predict`: `training=False`."""
        return np.asarray(self._predict(self._trainable, self._fixed, x))

    def update(
        self, x: Inputs, labels: npt.NDArray[np.float32], target: SoftTarget, shared: Inputs | None = None
    ) -> tuple[float, int]:
        """See `peer.learner.Learner.update`: `training=True`."""
        return self._descend(x, labels, target.probabilities, np.float32(target.weight), shared)

    def learn(self, x: Inputs, labels: npt.NDArray[np.float32]) -> tuple[float, int]:
        """See `peer.learner.Learner.learn`: `training=True`."""
        return self._descend(x, labels, None, None, None)

    def _descend(self, *given: Any) -> tuple[float, int]:
        self._trainable, self._fixed, self._slots, loss, right = self._step(
            self._trainable, self._fixed, self._slots, *given
        )
        return float(loss), int(right)

    def state(self) -> State:
        """See `peer.learner.Learner.state`."""
        self._hand_over()
        return super().state()

    def restore(self, state: State) -> None:
        """See `peer.learner.Learner.restore`."""
        self._hand_over()
        super().restore(state)
        self._take_over()

    def weights(self) -> State:
        """See `peer.learner.Learner.weights`."""
        self._hand_over()
        return super().weights()

    def load_weights(self, path: Path) -> None:
        """See `peer.learner.Learner.load_weights`."""
        self._hand_over()
        super().load_weights(path)
        self._take_over()

    def save_weights(self, path: Path) -> None:
        """See `peer.learner.Learner.save_weights`."""
        self._hand_over()
        super().save_weights(path)

    def save(self, path: Path) -> None:
        """See `peer.learner.Learner.save`."""
        self._hand_over()
        super().save(path)

    def _groups(self) -> tuple[list[Any], list[Any], list[Any]]:
        return self.model.trainable_variables, self.model.non_trainable_variables, self.optimizer.variables

    def _take_over(self) -> None:
        """Copy Keras' variables: buffers that a step may use up."""
        self._trainable, self._fixed, self._slots = (
            [jnp.array(v.value, copy=True) for v in group] for group in self._groups()
        )

    def _hand_over(self) -> None:
        """Give Keras' variables the values that are in force."""
        for group, values in zip(self._groups(), (self._trainable, self._fixed, self._slots), strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(jnp.array(value, copy=True))

    def _predict_pure(self, trainable: Any, fixed: Any, x: Any) -> Any:
        return self.model.stateless_call(trainable, fixed, x, training=False)[0]

    def _step_pure(
        self, trainable: Any, fixed: Any, slots: Any, x: Any, labels: Any, others: Any, weight: Any, public: Any
    ) -> tuple[Any, ...]:
        def objective(trainable: Any) -> tuple[Any, Any]:
            own, after, penalties = self.model.stateless_call(trainable, fixed, x, training=True, return_losses=True)
            shared = None
            if public is not None:
                shared, after, penalties = self.model.stateless_call(
                    trainable, after, public, training=True, return_losses=True
                )
            alone = others is None
            loss = self.loss.alone(labels, own) if alone else self.loss(labels, own, others, weight, shared)
            return loss + sum(penalties), (loss, own, after)

        gradients, (loss, own, fixed) = jax.grad(objective, has_aux=True)(trainable)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        right = jnp.sum(jnp.argmax(own, axis=1) == jnp.argmax(labels, axis=1))
        return trainable, fixed, slots, loss, right


def learner(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> JaxLearner:
    """The learner that the experiment describes for one of its peers, untrained."""
    return JaxLearner(*parts(experiment, peer, shape, classes))


def devices_in_use() -> str:
    """The framework and what it computes on, for people."""
    device = jax.devices()[0]
    return f"JAX {jax.__version__} computes on {'the CPU' if device.platform == 'cpu' else device.device_kind}"
