"""Anybody's arrays as numpy's, without importing anybody's framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from entangled.errors import PredictionError


def as_array(value: Any) -> npt.NDArray[Any]:
    """A numpy array of what `value` holds.

    Args:
        value: numpy, anything with `__array__` or `__dlpack__` (PyTorch, JAX, TensorFlow, CuPy, …), on any device and
            with or without gradients, or nested lists of numbers.

    >>> as_array([[0.25, 0.75]]).shape
    (1, 2)
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # PyTorch gives no array of what has a gradient, or is elsewhere
        value = value.detach().cpu()
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value, device="cpu", copy=None)
    return np.asarray(value)


def as_probabilities(value: Any) -> npt.NDArray[np.float32]:
    """A prediction as it goes over the wire: numpy, float32, row by row.

    Raises:
        PredictionError: these are no numbers.
    """
    array = as_array(value)
    if array.dtype.kind not in "fiu" and array.dtype.name not in ("bfloat16",):
        raise PredictionError("a prediction must hold numbers", expected="probabilities", got=str(array.dtype))
    return np.ascontiguousarray(array, dtype=np.float32)
