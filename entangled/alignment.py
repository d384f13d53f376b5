"""Positions, sample orders, batch digests and fingerprints: what makes alignment provable (guarantee 1)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from entangled.errors import AlignmentError

DIGEST_SIZE = 16
"""Bytes of every digest: BLAKE2b-128."""

_HASH = hashlib.blake2b(digest_size=DIGEST_SIZE)
_POSITION, _IDS = struct.Struct("<qq").pack, np.dtype("<i8")

SampleIds = npt.NDArray[np.int64]


class Position(NamedTuple):
    """A batch's place in the run, zero-based."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"epoch {self.epoch} step {self.step}"


@dataclass(frozen=True)
class Layout:
    """How `epochs` passes over `samples` samples divide into batches; the last batch of an epoch may be short.

    >>> layout = Layout(samples=10, batch_size=4, epochs=2)
    >>> layout.steps_per_epoch, layout.positions, layout.rows(2)
    (3, 6, 2)
    >>> layout.index(Position(1, 2)), layout.position(5)
    (5, Position(epoch=1, step=2))
    """

    samples: int
    batch_size: int
    epochs: int

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return -(-self.samples // self.batch_size)

    @cached_property
    def positions(self) -> int:
        """Batches in the whole run."""
        return self.epochs * self.steps_per_epoch

    def index(self, position: Position) -> int:
        """`epoch · steps_per_epoch + step`."""
        return position.epoch * self.steps_per_epoch + position.step

    def position(self, index: int) -> Position:
        """The inverse of `index`."""
        return Position(*divmod(index, self.steps_per_epoch))

    def rows(self, step: int) -> int:
        """Samples in the batch at `step`."""
        return min(self.batch_size, self.samples - step * self.batch_size)

    def batch(self, order: SampleIds, step: int) -> SampleIds:
        """The sample ids of the batch at `step` in an epoch of the given order; a view."""
        return order[step * self.batch_size : (step + 1) * self.batch_size]


def batch_digest(position: Position, sample_ids: SampleIds) -> bytes:
    """BLAKE2b-128 over a batch's position (two little-endian int64) and its ordered sample ids (little-endian int64).

    >>> batch_digest(Position(0, 0), np.array([3, 1])) == batch_digest(Position(0, 0), np.array([1, 3]))
    False
    """
    digest = _HASH.copy()
    digest.update(_POSITION(*position) + _bytes(sample_ids))
    return digest.digest()


def shared_batch_digest(position: Position, sample_ids: SampleIds) -> bytes:
    """The same, in less time where several peers of a process ask for it one after the other.

    >>> shared_batch_digest(Position(0, 0), np.array([3, 1])) == batch_digest(Position(0, 0), np.array([3, 1]))
    True
    """
    return _known_digest(position, _bytes(sample_ids))


@lru_cache(8)
def _known_digest(position: Position, sample_ids: bytes) -> bytes:
    return batch_digest(position, np.frombuffer(sample_ids, _IDS))


def _bytes(sample_ids: SampleIds) -> bytes:
    return (sample_ids if sample_ids.dtype is _IDS else sample_ids.astype(_IDS)).tobytes()


def sample_order(sample_ids: SampleIds, shuffle: int | Literal["full", "none"], seed: int, epoch: int) -> SampleIds:
    """The order of one epoch's samples: a function of its arguments alone.

    Args:
        sample_ids: every sample's id, int64, in the data set's order.
        shuffle: `"none"` keeps the data set's order, `"full"` permutes uniformly, and a number n draws each next sample
            from a buffer of n that slides over the data set, which is what `tf.data.Dataset.shuffle(n)` does.
        seed: the experiment's seed.
        epoch: zero-based.

    Returns:
        A permutation of `sample_ids`, int64.

    >>> sample_order(np.arange(6), 2, seed=0, epoch=0).tolist()
    [1, 2, 3, 0, 4, 5]
    """
    if shuffle == "none":
        return sample_ids.astype(np.int64)
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    if shuffle == "full":
        return random.permutation(sample_ids).astype(np.int64)
    ids: list[int] = sample_ids.tolist()
    size = min(shuffle, len(ids))
    draws: list[int] = random.integers(0, size, len(ids) - size).tolist()
    buffer, order = ids[:size], list[int]()
    for draw, incoming in zip(draws, ids[size:], strict=True):
        order.append(buffer[draw])
        buffer[draw] = incoming
    order.extend(buffer[i] for i in random.permutation(size).tolist())
    return np.array(order, dtype=np.int64)


def check_order(order: SampleIds, samples: int) -> None:
    """Raise AlignmentError unless `order` has each of the ids 0 … samples - 1 once."""
    if len(order) != samples or not np.array_equal(np.sort(order), np.arange(samples)):
        raise AlignmentError(
            "the coordinator's sample order is no permutation of the data set",
            expected=f"the ids 0 … {samples - 1}, each once",
            got=f"{len(order)} ids",
        )


@dataclass(frozen=True)
class Fingerprint:
    """Names a data set without showing it.

    Attributes:
        samples: how many.
        classes: of the labels; the width of every prediction.
        ids_digest: over the ordered sample ids.
        contents_digest: over the contents; empty where the data is not shared.
    """

    samples: int
    classes: int
    ids_digest: bytes
    contents_digest: bytes = b""

    def __str__(self) -> str:
        contents = self.contents_digest.hex() or "not compared"
        return f"{self.samples} samples, {self.classes} classes, ids {self.ids_digest.hex()}, contents {contents}"


def fingerprint(sample_ids: SampleIds, classes: int, *contents: npt.NDArray[np.generic]) -> Fingerprint:
    """Fingerprint a data set; with no `contents`, only its ids.

    Args:
        sample_ids: int64, in the data set's order.
        classes: number of classes.
        *contents: arrays of any shape and dtype, typically inputs and labels; shape and dtype count.
    """
    ids = hashlib.blake2b(np.ascontiguousarray(sample_ids, dtype="<i8").data, digest_size=DIGEST_SIZE)
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for array in contents:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return Fingerprint(len(sample_ids), classes, ids.digest(), digest.digest() if contents else b"")
