"""Data sets by name, as numpy arrays."""

from __future__ import annotations

import importlib
import re
from importlib import resources
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from entangled.alignment import Fingerprint, SampleIds, fingerprint
from entangled.errors import DataError


class Dataset(NamedTuple):
    """Labelled samples for training and for testing.

    `x` and `test_x` are float32 `(samples, …)`; `y` and `test_y` are int64 class numbers `(samples,)`, 0 … classes - 1;
    `ids` names the training samples, int64, 0 … samples - 1. Bytes (uint8) are scaled to 0 … 1.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    ids: SampleIds
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]
    classes: int

    def fingerprint(self) -> Fingerprint:
        """Ids and contents of the training samples."""
        return fingerprint(self.ids, self.classes, self.x, self.y)


def load(name: str) -> Dataset:
    """Load a data set.

    Args:
        name: `mnist` (shipped), `npz:PATH` with the arrays x_train, y_train, x_test, y_test, `keras:NAME` (downloads on
            first use), or `module:function`, a function of no arguments that returns
            `((x_train, y_train), (x_test, y_test))`. `[a:b]` at the end keeps the training samples a … b - 1.

    Raises:
        DataError: there is no such data set, or it is not labelled samples.
    """
    base, start, stop = _slice(name)
    arrays = _arrays(base)
    try:
        (x, y), (test_x, test_y) = arrays
        x, test_x = np.asarray(x), np.asarray(test_x)
    except (TypeError, ValueError) as error:
        raise DataError(f"{base} is not ((x_train, y_train), (x_test, y_test)): {error}") from None
    y, test_y = _labels(y, len(x), f"{base}: y_train"), _labels(test_y, len(test_x), f"{base}: y_test")
    classes = int(max(y.max(initial=0), test_y.max(initial=0))) + 1
    x, y = x[start:stop], y[start:stop]
    if len(x) == 0:
        raise DataError(f"{name} holds no samples")
    return Dataset(_scale(x), y, np.arange(len(x), dtype=np.int64), _scale(test_x), test_y, classes)


Arrays = tuple[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]], ...]


def _slice(name: str) -> tuple[str, int | None, int | None]:
    found = re.fullmatch(r"(.+?)\[(\d*):(\d*)\]", name)
    if found is None:
        return name, None, None
    base, start, stop = found.groups()
    return base, int(start) if start else None, int(stop) if stop else None


def _arrays(base: str) -> Arrays:
    kind, _, rest = base.partition(":")
    if base == "mnist":
        with resources.files("entangled.data").joinpath("mnist.npz").open("rb") as file:
            return _npz(file, base)
    if kind == "npz":
        try:
            with Path(rest).open("rb") as file:
                return _npz(file, rest)
        except OSError as error:
            raise DataError(f"cannot read {rest}: {error.strerror}") from None
        except (BadZipFile, EOFError, TypeError, ValueError) as error:
            raise DataError(f"{rest} is not an .npz file of plain arrays: {error}") from None
    if kind == "keras":
        return call("keras.datasets." + rest, "load_data")
    if rest:
        return call(kind, rest)
    raise DataError("no such data set", expected="mnist, npz:PATH, keras:NAME or module:function", got=base)


def _npz(file: IO[bytes], where: str) -> Arrays:
    names = ("x_train", "y_train", "x_test", "y_test")
    with np.load(file) as arrays:
        missing = [n for n in names if n not in arrays]
        if missing:
            raise DataError(f"{where} lacks arrays", expected=", ".join(names), got=", ".join(arrays) or "none")
        x, y, test_x, test_y = (arrays[n] for n in names)
    return (x, y), (test_x, test_y)


def call(module: str, function: str, *arguments: object):  # the user's function returns what it likes
    """Call a user's `module:function`; DataError if there is none."""
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(f"cannot find {module}:{function}: {error}") from None
    return found(*arguments)


def _labels(values: object, samples: int, where: str) -> npt.NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.shape not in ((samples,), (samples, 1)):
        raise DataError(
            f"{where} is not one class number for each sample", expected=str((samples,)), got=str(labels.shape)
        )
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.min(initial=0) < 0 or (numbers != labels.reshape(-1)).any():
        raise DataError(f"{where} holds labels that are not class numbers", expected="0, 1, 2 …")
    return numbers


def _scale(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    scaled = np.asarray(x).astype(np.float32)
    return scaled / np.float32(255) if x.dtype == np.uint8 else scaled
