"""What a trainer takes from a data set: batches by sample id."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from entangled.alignment import SampleIds
from entangled.datasets import Dataset


def batch(data: Dataset, sample_ids: SampleIds) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Inputs `(rows, …)` and one-hot labels `(rows, classes)`, float32, of the samples named by `sample_ids`."""
    return data.x[sample_ids], one_hot(data.y[sample_ids], data.classes)


def one_hot(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    """Class numbers `(rows,)` as `(rows, classes)` float32.

    >>> one_hot(np.array([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return _rows(classes)[labels]


@cache
def _rows(classes: int) -> npt.NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)
