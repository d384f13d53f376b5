"""The exchange log: one row per prediction, exactly what the soft targets were made from.

    RUN/exchange/epoch=NNNN.arrow          the epoch being written: an append-only Arrow stream
    RUN/exchange/epoch=NNNN/part-0.parquet  a finished epoch

Rows stand in order of index, then of the experiment's peers, and each carries a hash over itself and the row before it.
Each also names the exchange's members, who have a row in it each, so that none can be taken away. Of a prediction, the
hash takes in the digest, so that it can be checked where the prediction itself is not kept. Digest and statistics
are stored only in a log whose predictions go (`exchange.log`): elsewhere they can be computed from what is there. The
columns are described in docs/log.md.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from entangled.alignment import DIGEST_SIZE, Position, SampleIds
from entangled.distribution import STATISTICS, Probabilities, prediction_digest
from entangled.errors import FormatError, LogError


def _list(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", item, nullable=False))


DERIVED = ("prediction_digest", *STATISTICS)
"""Columns that are null where every prediction is kept for good."""

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in DERIVED)
        for name, kind in [
            ("step", pa.int32()),
            ("index", pa.int64()),
            ("peer", pa.string()),
            ("members", _list(pa.string())),
            ("weight", pa.float32()),
            ("sample_ids", _list(pa.int64())),
            ("digest", pa.binary(DIGEST_SIZE)),
            ("rows", pa.int32()),
            ("classes", pa.int32()),
            ("prediction", _list(pa.float32())),
            ("prediction_digest", pa.binary(DIGEST_SIZE)),
            *((name, pa.float32()) for name in STATISTICS),
            ("staleness", pa.int32()),
            ("received_at", pa.timestamp("us", tz="UTC")),
            ("wait_us", pa.int64()),
            ("bytes", pa.int32()),
            ("chain", pa.binary(DIGEST_SIZE)),
        ]
    ],
    {"entangled.log": "2"},
)
"""Its metadata is the format's version: 2 since prediction digests are BLAKE3."""

_BATCH_BYTES = 4 * 1024 * 1024
"""What a Parquet file is read in."""
_NUMBERS = struct.Struct("<iiqfiiiqqiii").pack
"""What the chain takes in of numbers and lengths."""
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Row(NamedTuple):
    """One prediction in the log; `chain` is computed as it is written."""

    position: Position
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    peer: str
    members: tuple[str, ...]
    """The peers that took part in the exchange, in the experiment's order; `peer` is one of them."""
    weight: float
    """λ in force; a float32 value."""
    sample_ids: SampleIds
    digest: bytes
    shape: tuple[int, int]
    """Rows and classes of the prediction."""
    prediction: Probabilities | None
    """`(rows, classes)` float32; None where it is not kept."""
    prediction_digest: bytes | None
    """Of `prediction`; None, as the statistics are, where every prediction is kept for good."""
    statistics: npt.NDArray[np.float32] | None
    """`(5,)`, as `entangled.distribution.statistics`."""
    staleness: int
    received_at: int
    """Microseconds since 1970, UTC."""
    wait_us: int
    """How long this peer then waited for the others."""
    bytes: int
    """Size on the wire."""


def genesis(experiment_toml: str) -> bytes:
    """The chain's start: BLAKE2b-128 over the run's `experiment.toml`."""
    return hashlib.blake2b(experiment_toml.encode(), digest_size=DIGEST_SIZE).digest()


def digest_of(row: Row) -> bytes:
    """The digest of a row's prediction, stored or not.

    Raises:
        LogError: the row has neither its prediction nor its digest.
    """
    if row.prediction_digest is not None:
        return row.prediction_digest
    if row.prediction is None:
        raise LogError(f"the row at index {row.index} of peer {row.peer} has neither a prediction nor its digest")
    return prediction_digest(row.prediction)


def chain(previous: bytes, row: Row) -> bytes:
    """BLAKE2b-128 over the previous row's chain and every column of `row`; of its prediction, over the digest."""
    peer, members = row.peer.encode(), ",".join(row.members).encode()  # no name has a comma
    numbers = _NUMBERS(
        *row.position,
        row.index,
        row.weight,
        *row.shape,
        row.staleness,
        row.received_at,
        row.wait_us,
        row.bytes,
        len(peer),
        len(members),
    )
    ids = row.sample_ids.astype("<i8", copy=False).tobytes()
    statistics = b"" if row.statistics is None else row.statistics.astype("<f4").tobytes()
    link = hashlib.blake2b(previous, digest_size=DIGEST_SIZE)
    link.update(b"".join((numbers, peer, members, row.digest, ids, digest_of(row), statistics)))
    return link.digest()


def folder(run: Path) -> Path:
    """Where a run keeps its exchange log."""
    return run / "exchange"


def stream_path(run: Path, epoch: int) -> Path:
    """The Arrow stream of an epoch that is being written."""
    return folder(run) / f"epoch={epoch:04d}.arrow"


def partition_path(run: Path, epoch: int) -> Path:
    """The Parquet file of a finished epoch."""
    return folder(run) / f"epoch={epoch:04d}" / "part-0.parquet"


def from_batch(batch: pa.RecordBatch, epoch: int) -> Iterator[tuple[Row, bytes]]:
    """Rows and their chain values in a record batch; the arrays are views."""
    c = {name: batch.column(name) for name in SCHEMA.names}
    plain = {
        name: c[name].to_pylist()
        for name in (
            *("step", "index", "peer", "members", "weight", "digest", "rows", "classes"),
            *("prediction_digest", "staleness", "wait_us", "bytes"),
        )
    }
    statistics = np.stack([c[name].to_numpy(zero_copy_only=False) for name in STATISTICS], axis=1)
    stored = np.stack([c[name].is_valid().to_numpy(zero_copy_only=False) for name in STATISTICS], axis=1)
    received = c["received_at"].cast(pa.int64()).to_pylist()
    chains = c["chain"].to_pylist()
    for i in range(batch.num_rows):
        ids = c["sample_ids"][i].values.to_numpy()
        prediction = c["prediction"][i].values.to_numpy()
        shape = plain["rows"][i], plain["classes"][i]
        if prediction.size not in (0, shape[0] * shape[1]):
            raise LogError(
                f"the prediction at index {plain['index'][i]} of peer {plain['peer'][i]} does not fill its shape",
                expected=str(shape),
                got=f"{prediction.size} values",
            )
        if stored[i].any() != stored[i].all():
            raise LogError(f"the row at index {plain['index'][i]} of peer {plain['peer'][i]} lacks some statistics")
        yield (
            Row(
                Position(epoch, plain["step"][i]),
                plain["index"][i],
                plain["peer"][i],
                tuple(plain["members"][i]),
                plain["weight"][i],
                ids,
                plain["digest"][i],
                shape,
                prediction.reshape(shape) if prediction.size else None,
                plain["prediction_digest"][i],
                statistics[i].astype(np.float32) if stored[i].all() else None,
                plain["staleness"][i],
                received[i],
                plain["wait_us"][i],
                plain["bytes"][i],
            ),
            chains[i],
        )


def partitions(run: Path) -> list[tuple[int, Path]]:
    """The files of a run's log, in order, each with its epoch; a stream only where the epoch has no Parquet yet.

    Raises:
        LogError: something in the log's folder is named like an epoch and is none.
    """
    parquet = [(_epoch(p.parent.name), p) for p in sorted(folder(run).glob("epoch=*/*.parquet"))]
    finished = {epoch for epoch, _ in parquet}
    streams = [(_epoch(p.stem), p) for p in sorted(folder(run).glob("epoch=*.arrow"))]
    return sorted([*parquet, *((epoch, p) for epoch, p in streams if epoch not in finished)])


def _epoch(name: str) -> int:
    number = name.removeprefix("epoch=")
    if not number.isdecimal():
        raise LogError("a partition of the log is not named after its epoch", expected="epoch=NNNN", got=name)
    return int(number)


def check_format(path: Path, schema: pa.Schema) -> None:
    """Raise LogError unless a file's schema is that of an exchange log; FormatError if of another version."""
    if schema.names != SCHEMA.names:
        raise LogError(f"{path} is no exchange log", expected=", ".join(SCHEMA.names), got=", ".join(schema.names))
    expected, got = (str((s.metadata or {}).get(b"entangled.log", b"1"), "utf-8", "replace") for s in (SCHEMA, schema))
    if got != expected:
        raise FormatError(f"{path} is in another version of the log's format", expected=expected, got=got)


def read_batches(path: Path, note: Callable[[str], None] = lambda _: None) -> Iterator[pa.RecordBatch]:
    """The record batches of a partition, one at a time; of a stream, up to its last whole batch.

    Args:
        path: as `partitions` gives it. A stream that became a Parquet file meanwhile is found there.
        note: is told what a stream holds behind its last whole batch.

    Raises:
        LogError: the file is damaged, or is no exchange log.
    """
    try:
        if path.suffix == ".arrow" and not path.exists():
            path = path.with_suffix("") / "part-0.parquet"
        batches = _read_parquet(path) if path.suffix == ".parquet" else _read_stream(path, note)
        for batch in batches:
            batch.validate(full=True)
            lists = [batch.column(name).values for name in ("members", "sample_ids", "prediction")]
            needed = [batch.column(name) for name in SCHEMA.names if name not in DERIVED]
            if any(column.null_count for column in [*needed, *lists]):
                raise ValueError("a value is missing")
            yield batch
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # damage may claim any size
        raise LogError(f"{path} cannot be read: {_first_line(error)}") from None


def _read_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        check_format(path, file.schema_arrow)
        data = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        rows = _BATCH_BYTES * max(file.metadata.num_rows, 1) // max(data, 1)
        yield from (batch.cast(SCHEMA) for batch in file.iter_batches(batch_size=min(max(rows, 1), 4096)))


def _read_stream(path: Path, note: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
    """Read message by message: it must be known where the last whole one ends."""
    with path.open("rb") as source:  # pa.OSFile would not see a file grow
        size, end = os.fstat(source.fileno()).st_size, 0
        try:
            while True:
                message = pa.ipc.read_message(source)
                if message.type == "schema":
                    schema = pa.ipc.read_schema(message)
                    check_format(path, schema)
                    if schema != SCHEMA:
                        raise LogError(f"{path} is no exchange log", expected=str(SCHEMA), got=str(schema))
                else:
                    yield pa.ipc.read_record_batch(message, SCHEMA)
                end = source.tell()
        except (pa.ArrowException, OSError, EOFError, MemoryError) as error:
            # What breaks off where the file ends was being written; anything else is damage.
            if not isinstance(error, EOFError) and source.tell() < size:
                raise
        source.seek(end)
        rest = source.read()
    if rest not in (b"", _END_OF_STREAM):
        note(f"{path}: the last {len(rest)} bytes are no whole batch of rows: its writer is at work, or was killed")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def read(run: Path) -> Iterator[tuple[Row, bytes]]:
    """Every row of a run's log with its chain value, in order, a record batch in memory at a time."""
    for epoch, path in partitions(run):
        for batch in read_batches(path):
            yield from from_batch(batch, epoch)
