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
    compared: npt.NDArray[np.int64] | None = None
    """What peers compare instead of the contents, where these differ."""

    def fingerprint(self) -> Fingerprint:
        """Ids and contents of the training samples."""
        contents = (self.x, self.y) if self.compared is None else (self.compared,)
        return fingerprint(self.ids, self.classes, *contents)


class Unlabelled(NamedTuple):
    """Samples that predictions are exchanged on where labels are private.

    `x` is float32 `(samples, …)`, `ids` names the samples, int64, 0 … samples - 1. `y` is int64 `(samples,)` where
    labels happen to be known, for people to look at, else None; no peer learns from them.
    """

    x: npt.NDArray[np.float32]
    ids: SampleIds
    classes: int
    y: npt.NDArray[np.int64] | None = None

    def fingerprint(self) -> Fingerprint:
        """Ids and contents of the samples, without labels."""
        return fingerprint(self.ids, self.classes, self.x)


def load(name: str, classes: int | None = None) -> Dataset:
    """Load a labelled data set.

    Args:
        name: `mnist` (shipped), `npz:PATH` with the arrays x_train, y_train, x_test, y_test, `keras:NAME` (downloads on
            first use), or `module:function`, a function of no arguments that returns
            `((x_train, y_train), (x_test, y_test))`. `[a:b]` at the end keeps the training samples a … b - 1.
        classes: how many there are; None goes by the highest label. If it is given, test data may be missing.

    Raises:
        DataError: there is no such data set, or it is not labelled samples.
    """
    return load_named(name, classes)[0]


def load_named(name: str, classes: int | None = None) -> tuple[Dataset, SampleIds]:
    """As `load`, and with the ids by which others know the training samples, int64 `(samples,)`.

    These are the array `ids` of an npz file; without it, the samples' places in the whole data set.
    """
    base, start, stop = _slice(name)
    found = _read(base)
    needed = ARRAYS if classes is None else ARRAYS[:2]
    if any(found.get(name) is None for name in needed):
        raise _lacking(base, needed, found)
    x, y, test_x, test_y = (found.get(n) for n in ARRAYS)
    x = _samples(x, base)
    test_x = x[:0] if test_x is None else _samples(test_x, base)
    test_y = [] if test_y is None else test_y
    y, test_y = _labels(y, len(x), f"{base}: y_train"), _labels(test_y, len(test_x), f"{base}: y_test")
    highest = int(max(y.max(initial=0), test_y.max(initial=0)))
    if classes is not None and highest >= classes:
        raise DataError(f"{base} has labels of more classes", expected=f"0 … {classes - 1}", got=str(highest))
    names = np.arange(len(x), dtype=np.int64) if found.get("ids") is None else _names(found["ids"], len(x), base)
    x, y, names = x[start:stop], y[start:stop], names[start:stop]
    if len(x) == 0:
        raise DataError(f"{name} holds no samples")
    ids = np.arange(len(x), dtype=np.int64)
    return Dataset(_scale(x), y, ids, _scale(test_x), test_y, classes or highest + 1), names


def load_unlabelled(name: str, classes: int | None = None) -> Unlabelled:
    """Load samples whose labels, if there are any, are of no use to a peer.

    Args:
        name: as of `load`; of an `npz:PATH`, only x_train is needed.
        classes: how many there are; None goes by the highest label.

    Raises:
        DataError: there is no such data set, or neither `classes` nor a label says how many there are.
    """
    base, start, stop = _slice(name)
    found = _read(base)
    if found.get("x_train") is None:
        raise _lacking(base, ARRAYS[:1], found)
    x = _samples(found["x_train"], base)
    labels = {name: found[name] for name in ("y_train", "y_test") if found.get(name) is not None}
    y = None if "y_train" not in labels else _labels(labels["y_train"], len(x), f"{base}: y_train")
    if classes is None:
        if y is None:
            raise DataError(f"{base} has no labels that would tell how many classes there are: set exchange.classes")
        classes = 1 + max(int(np.max(np.asarray(v), initial=0)) for v in labels.values())
    x = x[start:stop]
    if len(x) == 0:
        raise DataError(f"{name} holds no samples")
    return Unlabelled(_scale(x), np.arange(len(x), dtype=np.int64), classes, None if y is None else y[start:stop])


ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def _slice(name: str) -> tuple[str, int | None, int | None]:
    found = re.fullmatch(r"(.+?)\[(\d*):(\d*)\]", name)
    if found is None:
        return name, None, None
    base, start, stop = found.groups()
    return base, int(start) if start else None, int(stop) if stop else None


def _read(base: str) -> dict[str, object]:
    """The data set's arrays by name; an npz file may lack some, and its others are None."""
    kind, _, rest = base.partition(":")
    if base == "mnist":
        with resources.files("entangled.data").joinpath("mnist.npz").open("rb") as file:
            return _npz(file)
    if kind == "npz":
        try:
            with Path(rest).open("rb") as file:
                return _npz(file)
        except OSError as error:
            raise DataError(f"cannot read {rest}: {error.strerror}") from None
        except (BadZipFile, EOFError, TypeError, ValueError) as error:
            raise DataError(f"{rest} is not an .npz file of plain arrays: {error}") from None
    if not rest:
        raise DataError("no such data set", expected="mnist, npz:PATH, keras:NAME or module:function", got=base)
    found = call("keras.datasets." + rest, "load_data") if kind == "keras" else call(kind, rest)
    try:
        (x, y), (test_x, test_y) = found
    except (TypeError, ValueError) as error:
        raise DataError(f"{base} is not ((x_train, y_train), (x_test, y_test)): {error}") from None
    return dict(zip(ARRAYS, (x, y, test_x, test_y), strict=True))


def _npz(file: IO[bytes]) -> dict[str, object]:
    with np.load(file) as arrays:
        return {name: arrays[name] if name in (*ARRAYS, "ids") else None for name in arrays}


def _lacking(base: str, needed: tuple[str, ...], found: dict[str, object]) -> DataError:
    return DataError(
        f"{base.partition(':')[2]} lacks arrays", expected=", ".join(needed), got=", ".join(found) or "none"
    )


def _samples(values: object, where: str) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is not ((x_train, y_train), (x_test, y_test)): {error}") from None


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


def _names(values: object, samples: int, where: str) -> SampleIds:
    names = np.asarray(values)
    if names.shape != (samples,) or names.dtype.kind not in "iu":
        raise DataError(
            f"{where}: ids is not one whole number for each sample",
            expected=f"int64 {(samples,)}",
            got=f"{names.dtype} {names.shape}",
        )
    return names.astype(np.int64)


def _scale(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    scaled = np.asarray(x).astype(np.float32)
    return scaled / np.float32(255) if x.dtype == np.uint8 else scaled
