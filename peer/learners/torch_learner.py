"""Keras models on PyTorch: eager, or compiled by `torch.compile`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from entangled.distribution import Probabilities
from entangled.errors import DataError
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from peer.learner import Inputs
from peer.learners.keras_learner import KerasLearner, parts
from peer.loss import EntangledLoss


def configure(device: str, threads: int, memory: float | None = None, peers: int = 1) -> None:
    """Choose CPU threads, and make every operation deterministic; `peer.backends` has chosen the device.

    Args:
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        threads: for one operation; 0 leaves it to PyTorch.
        memory: of the GPU's, a share up to 1, MiB above that; None lets it grow with what is needed.
        peers: of this process.

    Raises:
        DataError: there is no such GPU here.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    if device.startswith("gpu") and not torch.cuda.is_available():
        raise DataError(f"there is no {device} here: PyTorch sees none")
    if memory is not None and device != "cpu" and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory if memory <= 1 else min(memory * 2**20 / total, 1.0))


class TorchLearner(KerasLearner):
    """`peer.learner.Learner` on PyTorch."""

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss, compiled: bool = False) -> None:
        super().__init__(model, optimizer, loss)
        self._device = model.variables[0].value.device
        self._predict: Any = torch.compile(self._predict_eager) if compiled else self._predict_eager
        self._losses: Any = torch.compile(self._losses_eager) if compiled else self._losses_eager

    def predict(self, x: Inputs) -> Probabilities:
        """See `peer.learner.Learner.predict`: `training=False`."""
        with torch.no_grad():
            return self._predict(self._tensor(x)).cpu().numpy()

    def update(
        self, x: Inputs, labels: npt.NDArray[np.float32], target: SoftTarget, shared: Inputs | None = None
    ) -> tuple[float, int]:
        """See `peer.learner.Learner.update`: `training=True`."""
        weight = torch.tensor(target.weight, dtype=torch.float32, device=self._device)
        public = None if shared is None else self._tensor(shared)
        return self._descend(x, labels, self._tensor(target.probabilities), weight, public)

    def learn(self, x: Inputs, labels: npt.NDArray[np.float32]) -> tuple[float, int]:
        """See `peer.learner.Learner.learn`: `training=True`."""
        return self._descend(x, labels, None, None, None)

    def _descend(
        self, x: Inputs, labels: npt.NDArray[np.float32], others: Any, weight: Any, public: Any
    ) -> tuple[float, int]:
        right_ones = self._tensor(labels)
        loss, objective, own = self._losses(self._tensor(x), right_ones, others, weight, public)
        self.model.zero_grad()
        objective.backward()
        variables = self.model.trainable_variables
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in variables], variables)
            right = (own.argmax(dim=1) == right_ones.argmax(dim=1)).sum()
        return loss.item(), int(right)

    def _tensor(self, array: npt.NDArray[np.float32]) -> torch.Tensor:
        return torch.tensor(array, device=self._device)  # a copy: what came off the wire cannot be written to

    def _predict_eager(self, x: Any) -> Any:
        return self.model(x, training=False)

    def _losses_eager(self, x: Any, labels: Any, others: Any, weight: Any, public: Any) -> tuple[Any, Any, Any]:
        own = self.model(x, training=True)
        shared = None if public is None else self.model(public, training=True)
        alone = others is None
        loss = self.loss.alone(labels, own) if alone else self.loss(labels, own, others, weight, shared)
        return loss, loss + sum(self.model.losses), own


def learner(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> TorchLearner:
    """The learner that the experiment describes for one of its peers, untrained."""
    return TorchLearner(*parts(experiment, peer, shape, classes), compiled=experiment.peers[peer].compile)


def devices_in_use() -> str:
    """The framework and what it computes on, for people."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "the CPU"
    return f"PyTorch {torch.__version__} computes on {name}"
