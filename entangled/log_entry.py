"""What the log takes in at once: the rows of one exchange, by field; their chain values; and many as Arrow's columns.

The log is read row by row (`exchange_log.Row`). It is written on the side of a run that exchanges thousands of times a
second, where most of a row is what it shares with the others of its exchange.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entangled.alignment import DIGEST_SIZE, Position, SampleIds
from entangled.distribution import STATISTICS, Probabilities, prediction_digests
from entangled.exchange_log import SCHEMA, Row, digest_of

_LARGE = 128 * 1024
"""Values in a column of lists from which on joining them had better let other threads work meanwhile."""
_SHARED, _OF_ROW = struct.Struct("<iiqfiii").pack, struct.Struct("<qqiii").pack
"""What the chain takes in of numbers and lengths."""
from_each = chain.from_iterable
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
    peers: Sequence[str]
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
            [row.peer for row in some],
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


def chained(previous: bytes, entries: Iterable[Entry]) -> list[bytes]:
    """`exchange_log.chain` of every row of some entries that follow one another.

    Args:
        previous: the chain value of the row before them.
        entries: in order.
    """
    entries = list(entries)
    unknown = [e.predictions for e in entries if e.prediction_digests is None]
    made = iter(prediction_digests(p for predictions in unknown for p in predictions if p is not None))
    found: list[bytes] = []
    seen: tuple[str, ...] | None = None
    listed = b""
    for entry in entries:
        position, index, members, weight, ids, digest, shape, staleness, peers, _, known, measured, *_ = entry
        if members != seen:
            seen, listed = members, ",".join(members).encode()  # no name has a comma
        shared = _SHARED(*position, index, weight, *shape, staleness)
        batch = listed + digest + ids.astype("<i8", copy=False).tobytes()
        lengths = len(listed)
        known = islice(made, len(peers)) if known is None else known
        statistics = repeat(b"", len(peers)) if measured is None else [m.tobytes() for m in measured.astype("<f4")]
        by_row = peers, entry.received_at, entry.wait_us, entry.bytes, known, statistics
        for name, received, wait, size, said, numbers in zip(*by_row, strict=True):
            peer = name.encode()
            own = _OF_ROW(received, wait, size, len(peer), lengths)
            link = _HASH.copy()
            link.update(b"".join((previous, shared, own, peer, batch, said, numbers)))
            previous = link.digest()
            found.append(previous)
    return found


def to_batch(rows: Sequence[Row], links: Sequence[bytes]) -> pa.RecordBatch:
    """Rows and their chain values as one record batch of the log's schema."""
    return batch_of(list(entries_of(rows)), links)


def batch_of(entries: Sequence[Entry], links: Sequence[bytes]) -> pa.RecordBatch:
    """The same of entries."""
    positions, index, members, weight, ids, digest, shapes, staleness, *by_row = zip(*entries, strict=True)
    peers, predictions, digests, statistics, received_at, wait_us, sizes = by_row
    each = list(map(len, peers))
    counts = np.array(each)
    rows, classes = zip(*shapes, strict=True)

    def repeated(values: Sequence[float], kind: type[np.generic]) -> npt.NDArray[Any]:
        return np.repeat(np.array(values, kind), counts)

    columns: dict[str, Any] = {
        "step": repeated([step for _, step in positions], np.int32),
        "index": repeated(index, np.int64),
        "peer": list(from_each(peers)),
        "members": _members(members, counts),
        "weight": repeated(weight, np.float32),
        "sample_ids": _sample_ids(ids, each),
        "digest": _fixed([one * n for one, n in zip(digest, each, strict=True)]),
        "rows": repeated(rows, np.int32),
        "classes": repeated(classes, np.int32),
        "prediction": _predictions(list(from_each(predictions))),
        "prediction_digest": _digests(digests, each),
        **_statistics(statistics, each),
        "staleness": repeated(staleness, np.int32),
        "received_at": list(from_each(received_at)),
        "wait_us": list(from_each(wait_us)),
        "bytes": list(from_each(sizes)),
        "chain": _fixed(links),
    }
    arrays = [columns[f.name] for f in SCHEMA]
    arrays = [a if isinstance(a, pa.Array) else pa.array(a, f.type) for a, f in zip(arrays, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _fixed(digests: Iterable[bytes]) -> pa.Array:
    """A column of digests, of which some may be joined already."""
    data = b"".join(digests)
    kind = pa.binary(DIGEST_SIZE)
    return pa.Array.from_buffers(kind, len(data) // DIGEST_SIZE, [None, pa.py_buffer(data)])


def _digests(of_each: Sequence[Sequence[bytes] | None], counts: Sequence[int]) -> pa.Array:
    """The predictions' digests, of rows of which some may have none."""
    kind = pa.binary(DIGEST_SIZE)
    if all(d is None for d in of_each):
        return pa.nulls(sum(counts), kind)
    return pa.array([d for one, n in zip(of_each, counts, strict=True) for d in one or [None] * n], kind)


def _sample_ids(ids: Sequence[SampleIds], counts: Sequence[int]) -> pa.Array:
    joined = b"".join([one.astype(np.int64, copy=False).tobytes() * n for one, n in zip(ids, counts, strict=True)])
    return _lists(np.repeat(list(map(len, ids)), counts), joined, pa.int64())


def _predictions(predictions: Sequence[Probabilities | None]) -> pa.Array:
    """A column of lists; a single prediction is not copied."""
    nothing = np.empty(0, np.float32)
    arrays = [nothing if p is None else p.astype(np.float32, copy=False) for p in predictions]
    lengths = np.array([a.size for a in arrays])
    if len(arrays) == 1:
        joined: Any = np.ascontiguousarray(arrays[0])
    elif lengths.sum() >= _LARGE:
        joined = np.concatenate([a.reshape(-1) for a in arrays])
    else:
        joined = b"".join([a.tobytes() for a in arrays])
    return _lists(lengths, joined, pa.float32())


def _lists(lengths: npt.NDArray[np.integer], joined: Any, item: pa.DataType) -> pa.Array:
    """A column of lists of these lengths, whose items are what `joined` has in memory."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = pa.Array.from_buffers(item, int(offsets[-1]), [None, pa.py_buffer(joined)])
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.field("element", item, nullable=False)))


def _members(members: Sequence[tuple[str, ...]], counts: npt.NDArray[np.int64]) -> pa.Array:
    """The members' column. Rows share a list in memory: 1,000 peers would make a million names of an exchange."""
    distinct: list[tuple[str, ...]] = []
    places: list[int] = []
    for names in members:
        if not distinct or names != distinct[-1]:
            distinct.append(names)
        places.append(len(distinct) - 1)
    return pa.array(distinct, SCHEMA.field("members").type).take(pa.array(np.repeat(places, counts), pa.int32()))


def _statistics(of_each: Sequence[npt.NDArray[np.float32] | None], counts: Sequence[int]) -> dict[str, Any]:
    """The statistics' columns, of rows of which some may have none."""
    if all(s is None for s in of_each):
        return dict.fromkeys(STATISTICS, pa.nulls(sum(counts), pa.float32()))
    nothing = [None] * len(STATISTICS)
    rows = [row for s, n in zip(of_each, counts, strict=True) for row in ([nothing] * n if s is None else s.tolist())]
    return dict(zip(STATISTICS, zip(*rows, strict=True), strict=True))
