"""The state of a training loop as plain arrays and text: what a checkpoint may hold. No pickle, so loading is safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from entangled.errors import DataError
from entangled.participation.arrays import as_array

Tree = Any
"""Mappings, lists and tuples, nested, of arrays of any framework, bytes, text, numbers, truth values and None."""

Array = npt.NDArray[Any]


def flatten(tree: Tree) -> tuple[Any, list[Array]]:
    """Take a tree apart.

    Returns:
        Its structure, which JSON can hold, and its arrays in order.

    Raises:
        DataError: something in it is none of the kinds above.

    >>> structure, arrays = flatten({"w": np.ones(2), "step": 3})
    >>> unflatten(structure, arrays)
    {'w': array([1., 1.]), 'step': 3}
    """
    arrays: list[Array] = []
    return _take_apart(tree, arrays, "the state"), arrays


def unflatten(structure: Any, arrays: list[Array]) -> Tree:
    """Put a tree together again: arrays are numpy's, numpy's own numbers are arrays, the rest is what it was."""
    kind, value = structure
    match kind:
        case "mapping":
            return {unflatten(k, arrays): unflatten(v, arrays) for k, v in value}
        case "list":
            return [unflatten(v, arrays) for v in value]
        case "tuple":
            return tuple(unflatten(v, arrays) for v in value)
        case "bytes":
            return arrays[value].tobytes()
        case "array":
            return arrays[value]
        case _:
            return value


def _take_apart(tree: Tree, arrays: list[Array], where: str) -> Any:
    match tree:
        case None | bool() | int() | float() | str():
            return "plain", tree
        case bytes() | bytearray():
            arrays.append(np.frombuffer(bytes(tree), np.uint8))
            return "bytes", len(arrays) - 1
        case Mapping():
            return "mapping", [
                (_take_apart(k, arrays, where), _take_apart(v, arrays, f"{where}[{k!r}]")) for k, v in tree.items()
            ]
        case list() | tuple():
            kind = "list" if isinstance(tree, list) else "tuple"
            return kind, [_take_apart(v, arrays, f"{where}[{i}]") for i, v in enumerate(tree)]
        case _:
            found = as_array(tree)
            if found.dtype.kind not in "biufcSU":
                raise DataError(
                    f"{where} cannot be kept in a checkpoint",
                    expected="arrays of numbers, bytes, text, numbers, and lists and mappings of them",
                    got=f"{type(tree).__name__} of {found.dtype}",
                )
            arrays.append(found)
            return "array", len(arrays) - 1
