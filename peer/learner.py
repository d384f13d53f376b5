"""What the training loop needs of a model, whatever framework it is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from entangled.distribution import Probabilities
from entangled.participation.seam import SoftTarget

State = Sequence[npt.NDArray[Any]]
Meet = Callable[[Probabilities], SoftTarget]
Inputs = npt.NDArray[np.float32]


class Learner(Protocol):
    """A model with its optimizer and the entangled step; knows no exchange."""

    def place(self, array: Inputs) -> Inputs:
        """The array where the model computes, for `step` to take instead of it. May be called while a step waits."""
        ...

    def predict(self, x: Inputs) -> Probabilities:
        """The probabilities `(rows, classes)` for a batch `(rows, …)`, as in use: without dropout and the like."""
        ...

    def update(
        self, x: Inputs, labels: npt.NDArray[np.float32], target: SoftTarget, shared: Inputs | None = None
    ) -> tuple[float, int]:
        """One step of the optimizer on CE(labels, p) + λ · KL.

        Args:
            x: inputs `(rows, …)`.
            labels: one-hot `(rows, classes)`.
            target: the soft target for the same samples, or for those of `shared`.
            shared: with private data, the inputs that the soft target is about; `x` are private ones.

        Returns:
            The batch's loss, and the number of right predictions.
        """
        ...

    def learn(self, x: Inputs, labels: npt.NDArray[np.float32]) -> tuple[float, int]:
        """One step of the optimizer on CE(labels, p) alone; the same returns as of `update`."""
        ...

    def step(self, x: Inputs, labels: npt.NDArray[np.float32], exchange: Meet) -> tuple[float, int]:
        """`predict`, `exchange`, `update`: to the bit, but with one forward pass where that makes no difference.

        Args:
            x: inputs `(rows, …)`.
            labels: one-hot `(rows, classes)`.
            exchange: publishes what was predicted and waits for the soft target.

        Returns:
            As `update`.
        """
        ...

    def state(self) -> State:
        """Every variable of the model, random state included, and of the optimizer."""
        ...

    def restore(self, state: State) -> None:
        """Take over what `state` gave.

        Raises:
            LogError: it is another model's.
        """
        ...

    def weights(self) -> State:
        """The model's weights alone."""
        ...

    def load_weights(self, path: Path) -> None:
        """Take the model's weights from a file that `save_weights` wrote."""
        ...

    def save_weights(self, path: Path) -> None:
        """Write the model's weights to `path`, `….weights.h5`."""
        ...

    def save(self, path: Path) -> None:
        """Write the whole model to `path`, `….keras`."""
        ...
