"""What the log takes in at once: the rows of one exchange, by field; and how they become Arrow's columns.

The log is read row by row (`exchange_log.Row`). It is written beside a coordinator that takes in thousands of exchanges
a second, where most of a row is what it shares with the others of its exchange, and where an object that is looked at
once more is no longer in the cache.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entangled.alignment import DIGEST_SIZE, Position, SampleIds
from entangled.distribution import STATISTICS, Probabilities, data_digests
from entangled.exchange_log import SCHEMA, Row, digest_of

BATCH_BYTES = 7 * 1024 * 1024
"""Of the predictions and the members' names in a record batch, at least; only the last of a flush has less. With
predictions of up to a megabyte it is less than `allocator.LARGEST`, so that joining them takes no new memory."""
_FEW = 1024
"""Values of a prediction up to which its bytes are copied when it is added, and not when all are joined; to join lists
that have more, on average, had better let other threads work meanwhile."""
_FLOAT, _ID = np.dtype("<f4"), np.dtype("<i8")
_SHARED, _OWN = struct.Struct("<iiqfiii").pack, struct.Struct("<qqiii").pack
"""What the chain takes in of numbers and lengths: those of an exchange, then those of a row."""
_SHARED_TYPE = np.dtype(f"<i4, <i4, <i8, <f4, <i4, <i4, <i4, V{DIGEST_SIZE}")
_OWN_TYPE = np.dtype("<i8, <i8, <i4, <i4, <i4")
_DIGEST = pa.binary(DIGEST_SIZE)
_HASH = hashlib.blake2b(digest_size=DIGEST_SIZE)


class Entry(NamedTuple):
    """The rows of one exchange, or some that follow one another: what they share, and then a value for each row.

    The fields are those of a `Row`.
    """

    position: Position
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    members: tuple[str, ...]
    weight: float
    sample_ids: SampleIds
    digest: bytes
    shape: tuple[int, ...]
    staleness: int
    peers: tuple[str, ...]
    predictions: Sequence[Probabilities | None]
    prediction_digests: Sequence[bytes] | None
    """None where every prediction is kept for good."""
    statistics: npt.NDArray[np.float32] | None
    """`(rows, 5)`; None as the digests are."""
    received_at: Sequence[int]
    wait_us: Sequence[int]
    bytes: Sequence[int]

    def part(self, begin: int, end: int) -> Entry:
        """Its rows from `begin` to before `end`."""
        rows = slice(begin, end)
        return self._replace(
            peers=self.peers[rows],
            predictions=self.predictions[rows],
            prediction_digests=None if self.prediction_digests is None else self.prediction_digests[rows],
            statistics=None if self.statistics is None else self.statistics[rows],
            received_at=self.received_at[rows],
            wait_us=self.wait_us[rows],
            bytes=self.bytes[rows],
        )


def entries_of(rows: Iterable[Row]) -> Iterator[Entry]:
    """Rows that follow one another, those of each exchange together.

    Raises:
        LogError: one has neither its prediction nor its digest.
    """
    for (*shared, with_digests, with_statistics, _), group in groupby(rows, _shared):
        some = list(group)
        for row in some:
            if row.prediction is None:
                digest_of(row)
        position, index, members, weight, digest, shape, staleness = shared
        yield Entry(
            position,
            index,
            members,
            weight,
            some[0].sample_ids,
            digest,
            shape,
            staleness,
            tuple(row.peer for row in some),
            [row.prediction for row in some],
            [row.prediction_digest or b"" for row in some] if with_digests else None,
            np.stack([row.statistics for row in some if row.statistics is not None]) if with_statistics else None,
            [row.received_at for row in some],
            [row.wait_us for row in some],
            [row.bytes for row in some],
        )


def _shared(row: Row) -> tuple[Any, ...]:
    stored = row.prediction_digest is not None, row.statistics is not None
    shared = row.position, row.index, row.members, row.weight, row.digest, row.shape, row.staleness
    return *shared, *stored, row.sample_ids.tobytes()


_Rest = tuple[int, tuple[str, ...], tuple[str, ...], bytes, Sequence[bytes] | None, npt.NDArray[np.float32] | None]
"""Of an entry: how many rows it has, whose they are, its members, sample ids, digests and statistics."""


class Columns:
    """Rows on their way into a record batch: each is chained to the one before it, and taken apart.

    `exchange_log.chain` is what the chain is, row by row.

    Args:
        link: the chain value of the row before them.
    """

    def __init__(self, link: bytes) -> None:
        self.link = link
        """The chain value of the last row."""
        self.complete = 0
        """One more than the last row's index."""
        self.nbytes = 0
        """Of the predictions, and of the members' names, which every row has."""
        self._shared: list[bytes] = []
        """What the rows of an exchange share, of each."""
        self._own: list[bytes] = []
        """What is a row's own, of each."""
        self._links: list[bytes] = []
        """The chain values."""
        self._predictions: list[Any] = []
        """The bytes of each."""
        self._rest: list[_Rest] = []
        """Of each entry."""
        self._peers: tuple[str, ...] = ()
        self._encoded: list[tuple[bytes, int]] = []
        """Whose rows the last entry's are: their names, with the lengths."""
        self._members: tuple[str, ...] = ()
        """Of the last one."""
        self._listed = b""
        """These as the chain takes them in."""

    def __len__(self) -> int:
        return len(self._predictions)

    def add(self, entry: Entry) -> None:
        """Add the rows of an entry."""
        position, index, members, weight, ids, digest, shape, staleness, peers, predictions, known, measured, *_ = entry
        if members != self._members:
            self._members, self._listed = members, ",".join(members).encode()  # no name has a comma
        if peers != self._peers:
            self._peers, self._encoded = peers, [(peer, len(peer)) for peer in map(str.encode, peers)]
        shared = _SHARED(*position, index, weight, *shape, staleness)
        data = [
            p.tobytes() if p is not None and p.dtype is _FLOAT and p.size <= _FEW else _exact(p) for p in predictions
        ]
        sample_ids, lengths = (ids if ids.dtype is _ID else ids.astype(_ID)).tobytes(), len(self._listed)
        batch = self._listed + digest + sample_ids
        said = data_digests(data) if known is None else known
        if measured is not None:
            said = [one + numbers.tobytes() for one, numbers in zip(said, measured.astype("<f4"), strict=True)]
        link, copy, join = self.link, _HASH.copy, b"".join
        add_own, add_link = self._own.append, self._links.append
        by_row = self._encoded, entry.received_at, entry.wait_us, entry.bytes, said
        for (peer, length), received, wait, size, of_prediction in zip(*by_row, strict=True):
            own = _OWN(received, wait, size, length, lengths)
            row = copy()
            row.update(join((link, shared, own, peer, batch, of_prediction)))
            link = row.digest()
            add_own(own)
            add_link(link)
        self.link, self.complete = link, index + 1
        self.nbytes += len(peers) * (len(data[0]) + lengths)
        self._shared.append(shared + digest)
        self._predictions += data
        self._rest.append((len(peers), peers, members, sample_ids, known, measured))

    def batch(self) -> pa.RecordBatch:
        """All of them."""
        counts, peers, members, sample_ids, known, measured = zip(*self._rest, strict=True)
        shared = np.repeat(np.frombuffer(b"".join(self._shared), _SHARED_TYPE), counts)
        own = np.frombuffer(b"".join(self._own), _OWN_TYPE)
        _, step, index, weight, rows, classes, staleness, digest = (shared[field] for field in _SHARED_TYPE.names or ())
        received_at, wait_us, size, _, _ = (own[field] for field in _OWN_TYPE.names or ())
        columns: dict[str, Any] = {
            "step": step,
            "index": index,
            "peer": _names(peers, 1),
            "members": _members(members, counts),
            "weight": weight,
            "sample_ids": _lists(sample_ids, pa.int64(), counts),
            "digest": _fixed(digest.tobytes()),
            "rows": rows,
            "classes": classes,
            "prediction": _lists(self._predictions, pa.float32()),
            "prediction_digest": _stored_digests(known, counts),
            **_statistics(measured, counts),
            "staleness": staleness,
            "received_at": received_at,
            "wait_us": wait_us,
            "bytes": size,
            "chain": _fixed(b"".join(self._links)),
        }
        arrays = [columns[f.name] for f in SCHEMA]
        arrays = [a if isinstance(a, pa.Array) else pa.array(a, f.type) for a, f in zip(arrays, SCHEMA, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class Gathered:
    """Entries that were added and not written, as columns for record batches.

    Args:
        link: the chain value of the row before them.
    """

    def __init__(self, link: bytes) -> None:
        self.link = link
        """The chain value of the last row."""
        self._batches: list[tuple[int, Columns]] = []

    def add(self, entry: Entry) -> None:
        """Add the rows of an entry, in order."""
        prediction, rows = entry.predictions[0], len(entry.peers)
        each = prediction.nbytes if prediction is not None else 0
        begin = 0
        while begin < rows:
            columns = self._open(entry.position.epoch)
            end = begin + -(-(BATCH_BYTES - columns.nbytes) // each) if each else rows
            columns.add(entry if begin == 0 and end >= rows else entry.part(begin, end))
            self.link, begin = columns.link, end

    def _open(self, epoch: int) -> Columns:
        """Those to which a row of an epoch may be added."""
        if self._batches:
            of, columns = self._batches[-1]
            if of == epoch and columns.nbytes < BATCH_BYTES:
                return columns
        self._batches.append((epoch, Columns(self.link)))
        return self._batches[-1][1]

    def take(self) -> list[tuple[int, Columns]]:
        """What is there, in order, each with its epoch; from now on it is here no more."""
        taken, self._batches = self._batches, []
        return taken

    @property
    def is_batch(self) -> bool:
        """Whether there is enough for a record batch."""
        return bool(self._batches) and self._batches[0][1].nbytes >= BATCH_BYTES


def to_batch(rows: Iterable[Row], links: Iterable[bytes]) -> pa.RecordBatch:
    """Rows as one record batch of the log's schema, with these chain values, whatever they are."""
    columns = Columns(bytes(DIGEST_SIZE))
    for entry in entries_of(rows):
        columns.add(entry)
    place = SCHEMA.get_field_index("chain")
    return columns.batch().set_column(place, SCHEMA.field(place), _fixed(b"".join(links)))


def _exact(prediction: Probabilities | None) -> Any:
    """The bytes of a prediction as they are in the log; a small one's are copied, while they are at hand."""
    if prediction is None:
        return b""
    exact = prediction.astype(_FLOAT, copy=False)
    if exact.size <= _FEW:
        return exact.tobytes()
    return memoryview(np.ascontiguousarray(exact)).cast("B")  # pyright: ignore[reportArgumentType]


def _fixed(digests: bytes) -> pa.Array:
    """A column of digests."""
    return pa.Array.from_buffers(_DIGEST, len(digests) // DIGEST_SIZE, [None, pa.py_buffer(digests)])


def _lists(parts: Sequence[Any], item: pa.DataType, counts: Sequence[int] | None = None) -> pa.Array:
    """A column of lists, of the bytes of each, or of each in as many rows as is said; a single one's are not copied."""
    lengths = np.fromiter(map(len, parts), np.int32, len(parts)) // (item.bit_width // 8)
    if counts is not None:
        lengths = np.repeat(lengths, counts)
        parts = [part * rows for part, rows in zip(parts, counts, strict=True)]
    offsets = _offsets(lengths)
    joined: Any
    if len(parts) == 1:
        joined = parts[0]
    elif offsets[-1] > len(lengths) * _FEW:
        joined = np.concatenate([np.frombuffer(part, np.uint8) for part in parts])
    else:
        joined = b"".join(parts)
    values = pa.Array.from_buffers(item, int(offsets[-1]), [None, pa.py_buffer(joined)])
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.field("element", item, nullable=False)))


def _offsets(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Where each of a column's lists begins, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _stored_digests(of_each: Sequence[Sequence[bytes] | None], counts: Sequence[int]) -> pa.Array:
    """The predictions' digests, of rows of which some may have none."""
    if all(d is None for d in of_each):
        return pa.nulls(sum(counts), _DIGEST)
    return pa.array([d for one, n in zip(of_each, counts, strict=True) for d in one or [None] * n], _DIGEST)


def _members(members: Sequence[tuple[str, ...]], counts: Sequence[int]) -> pa.Array:
    """The members' column."""
    lengths = np.repeat(np.fromiter(map(len, members), np.int32, len(members)), counts)
    return pa.ListArray.from_arrays(_offsets(lengths), _names(members, counts), type=SCHEMA.field("members").type)


def _names(names: Sequence[tuple[str, ...]], times: Sequence[int] | int) -> pa.Array:
    """All of them, each tuple so many times: mostly the same again and again, which is not looked at each time."""
    of_each = repeat(times, len(names)) if isinstance(times, int) else times
    runs = [(same, sum(n for _, n in run)) for same, run in groupby(zip(names, of_each, strict=True), itemgetter(0))]
    parts = [_again(2 ** (n - 1).bit_length(), same).slice(0, n * len(same)) for same, n in runs]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


@lru_cache(4)
def _again(times: int, names: tuple[str, ...]) -> pa.Array:
    """These strings, and again, so many times."""
    encoded = [name.encode() for name in names]
    once = _offsets(np.array(list(map(len, encoded)), np.int32))
    begins = np.add.outer(np.arange(times, dtype=np.int32) * once[-1], once[:-1])
    offsets = np.append(begins, once[-1:] * times)
    data = pa.py_buffer(b"".join(encoded) * times)
    return pa.StringArray.from_buffers(len(names) * times, pa.py_buffer(offsets), data)


def _statistics(of_each: Sequence[npt.NDArray[np.float32] | None], counts: Sequence[int]) -> dict[str, Any]:
    """The statistics' columns, of rows of which some may have none."""
    if all(s is None for s in of_each):
        return dict.fromkeys(STATISTICS, pa.nulls(sum(counts), pa.float32()))
    nothing = [None] * len(STATISTICS)
    rows = [row for s, n in zip(of_each, counts, strict=True) for row in ([nothing] * n if s is None else s.tolist())]
    return dict(zip(STATISTICS, zip(*rows, strict=True), strict=True))
