"""The exchange log: one row per prediction, exactly what the soft targets were made from.

    RUN/exchange/epoch=NNNN.arrow          the epoch being written: an append-only Arrow stream
    RUN/exchange/epoch=NNNN/part-0.parquet  a finished epoch

Rows stand in order of index, then of the experiment's peers, and each carries a hash over itself and the row before it.
The columns are described in docs/protocol.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entangled import atomic, faults
from entangled.alignment import DIGEST_SIZE, Position, SampleIds
from entangled.distribution import Probabilities
from entangled.errors import LogError


def _list(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", item, nullable=False))


SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in [
            ("step", pa.int32()),
            ("index", pa.int64()),
            ("peer", pa.string()),
            ("weight", pa.float32()),
            ("sample_ids", _list(pa.int64())),
            ("digest", pa.binary(DIGEST_SIZE)),
            ("rows", pa.int32()),
            ("classes", pa.int32()),
            ("prediction", _list(pa.float32())),
            ("staleness", pa.int32()),
            ("received_at", pa.timestamp("us", tz="UTC")),
            ("wait_us", pa.int64()),
            ("bytes", pa.int32()),
            ("chain", pa.binary(DIGEST_SIZE)),
        ]
    ]
)

# Encodings that shrink the bookkeeping columns before compression; predictions are stored plain.
_DELTA = ["step", "index", "sample_ids.list.element", "received_at", "wait_us", "bytes"]
_DICTIONARY = ["peer", "weight", "digest", "rows", "classes", "staleness"]
_ROW_GROUP_BYTES = 16 * 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024
"""What a Parquet file is read in."""
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction in the log; `chain` is computed as it is written."""

    position: Position
    index: int
    peer: str
    weight: float
    """λ in force; a float32 value."""
    sample_ids: SampleIds
    digest: bytes
    prediction: Probabilities
    """`(rows, classes)` float32."""
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


def chain(previous: bytes, row: Row) -> bytes:
    """BLAKE2b-128 over the previous row's chain and every column of `row`."""
    rows, classes = row.prediction.shape
    peer = row.peer.encode()
    digest = hashlib.blake2b(previous, digest_size=DIGEST_SIZE)
    digest.update(
        struct.pack(
            "<iiqfiiiqqii",
            *row.position,
            row.index,
            row.weight,
            rows,
            classes,
            row.staleness,
            row.received_at,
            row.wait_us,
            row.bytes,
            len(peer),
        )
    )
    digest.update(peer)
    digest.update(row.digest)
    digest.update(np.ascontiguousarray(row.sample_ids, dtype="<i8").data)
    digest.update(np.ascontiguousarray(row.prediction, dtype="<f4").data)
    return digest.digest()


def folder(run: Path) -> Path:
    """Where a run keeps its exchange log."""
    return run / "exchange"


def stream_path(run: Path, epoch: int) -> Path:
    """The Arrow stream of an epoch that is being written."""
    return folder(run) / f"epoch={epoch:04d}.arrow"


def partition_path(run: Path, epoch: int) -> Path:
    """The Parquet file of a finished epoch."""
    return folder(run) / f"epoch={epoch:04d}" / "part-0.parquet"


class Writer:
    """Appends a run's rows. Not thread-safe: one thread owns it.

    A `flush` returns when its rows are on disk (fsync). An epoch that is finished becomes a Parquet file, whole or not
    at all. A writer that was killed leaves a log that the next one goes on with: up to the last whole exchange whose
    chain holds.
    """

    def __init__(self, run: Path, start: bytes, peers: int) -> None:
        """Begin a log, or go on with what is there.

        Args:
            run: the run's folder.
            start: `genesis` of the run's experiment.
            peers: rows of one exchange.

        Raises:
            LogError: a finished part of the log that is there cannot be read.
        """
        folder(run).mkdir(parents=True, exist_ok=True)
        self._run = run
        self._peers = peers
        self._chain = start
        self.resumed = 0
        """How many exchanges, from the first, were there already."""
        self._epoch = -1
        self._pending: list[tuple[Row, bytes]] = []
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._resume()

    @property
    def chain(self) -> bytes:
        """The chain value of the last appended row."""
        return self._chain

    def _resume(self) -> None:
        for path in folder(self._run).glob("**/.tmp-*"):
            path.unlink()
        found = partitions(self._run)
        finished = [path for _, path in found if path.suffix == ".parquet"]
        for path in folder(self._run).glob("epoch=*.arrow"):
            if partition_path(self._run, int(path.stem.removeprefix("epoch="))) in finished:
                path.unlink()  # killed between rename and unlink
        if finished:
            try:
                with pq.ParquetFile(finished[-1]) as file:
                    last = file.read_row_group(file.num_row_groups - 1, ["index", "chain"]).to_pylist()[-1]
            except (pa.ArrowInvalid, OSError, IndexError) as error:
                raise LogError(f"{finished[-1]} cannot be read: {error}") from None
            self.resumed, self._chain = last["index"] + 1, last["chain"]
        for epoch, path in found:
            if path.suffix == ".arrow":
                self._resume_stream(epoch, path)

    def _resume_stream(self, epoch: int, path: Path) -> None:
        """Copy the whole exchanges of an unfinished epoch to a new stream, and go on in that one."""
        temporary = atomic.temporary_for(path, ".tmp")
        self._epoch = epoch
        self._file = pa.OSFile(str(temporary), "wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMA)
        rows: list[tuple[Row, bytes]] = []
        with contextlib.suppress(LogError):  # a torn tail: never synced, so nobody was told that it was
            for row, stored in (pair for batch in read_batches(path) for pair in from_batch(batch, epoch)):
                link = chain(rows[-1][1] if rows else self._chain, row)
                if link != stored or row.index != self.resumed:
                    break
                rows.append((row, link))
                if len(rows) == self._peers:
                    self._pending += rows
                    self._chain, self.resumed, rows = link, self.resumed + 1, []
                    if len(self._pending) >= 1024:
                        self.flush()
        self.flush()
        atomic.sync(temporary)
        temporary.replace(path)
        atomic.sync(path.parent)

    def append(self, row: Row) -> None:
        """Add a row; epochs must come in order. A row of a new epoch finishes the one before."""
        if row.position.epoch != self._epoch:
            self.finish_epoch()
            self._epoch = row.position.epoch
            path = stream_path(self._run, self._epoch)
            self._file = pa.OSFile(str(path), "wb")
            self._stream = pa.ipc.new_stream(self._file, SCHEMA)
        self._chain = chain(self._chain, row)
        self._pending.append((row, self._chain))

    def flush(self) -> None:
        """Put every appended row on disk."""
        if self._pending and self._stream is not None and self._file is not None:
            self._stream.write_batch(to_batch(self._pending))
            self._pending.clear()
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish_epoch(self) -> None:
        """Turn the open epoch's stream into its Parquet partition."""
        if self._stream is None or self._file is None:
            return
        self.flush()
        self._stream.close()
        self._file.close()
        self._stream = self._file = None
        source, target = stream_path(self._run, self._epoch), partition_path(self._run, self._epoch)
        target.parent.mkdir(exist_ok=True)
        atomic.write(target, lambda file: _to_parquet(source, file), suffix=".tmp")
        faults.point("coordinator", "between partition and stream")
        source.unlink()

    def close(self) -> None:
        """Flush and close, leaving an unfinished epoch as a stream."""
        self.flush()
        if self._stream is not None and self._file is not None:
            self._stream.close()
            self._file.close()
        self._stream = self._file = None


def to_batch(rows: Sequence[tuple[Row, bytes]]) -> pa.RecordBatch:
    """Rows and their chain values as one record batch of `SCHEMA`."""
    plain = [row for row, _ in rows]

    def lists(arrays: list[np.ndarray], item: pa.DataType) -> pa.Array:
        offsets = np.zeros(len(arrays) + 1, np.int32)
        np.cumsum([a.size for a in arrays], out=offsets[1:])
        values = pa.array(np.concatenate([a.reshape(-1) for a in arrays]), item)
        return pa.ListArray.from_arrays(offsets, values, type=_list(item))

    columns = [
        [r.position.step for r in plain],
        [r.index for r in plain],
        [r.peer for r in plain],
        [r.weight for r in plain],
        lists([r.sample_ids for r in plain], pa.int64()),
        [r.digest for r in plain],
        [r.prediction.shape[0] for r in plain],
        [r.prediction.shape[1] for r in plain],
        lists([r.prediction for r in plain], pa.float32()),
        [r.staleness for r in plain],
        [r.received_at for r in plain],
        [r.wait_us for r in plain],
        [r.bytes for r in plain],
        [link for _, link in rows],
    ]
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def from_batch(batch: pa.RecordBatch, epoch: int) -> Iterator[tuple[Row, bytes]]:
    """Rows and their chain values in a record batch; the arrays are views."""
    c = {name: batch.column(name) for name in SCHEMA.names}
    plain = {
        name: c[name].to_pylist()
        for name in ("step", "index", "peer", "weight", "digest", "rows", "classes", "staleness", "wait_us", "bytes")
    }
    received = c["received_at"].cast(pa.int64()).to_pylist()
    chains = c["chain"].to_pylist()
    for i in range(batch.num_rows):
        ids = c["sample_ids"][i].values.to_numpy()
        prediction = c["prediction"][i].values.to_numpy()
        shape = plain["rows"][i], plain["classes"][i]
        if prediction.size != shape[0] * shape[1]:
            raise LogError(
                f"the prediction at index {plain['index'][i]} of peer {plain['peer'][i]} does not fill its shape",
                expected=str(shape),
                got=f"{prediction.size} values",
            )
        yield (
            Row(
                Position(epoch, plain["step"][i]),
                plain["index"][i],
                plain["peer"][i],
                plain["weight"][i],
                ids,
                plain["digest"][i],
                prediction.reshape(shape),
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
            lists = [batch.column(name).values for name in ("sample_ids", "prediction")]
            if any(column.null_count for column in [*batch.columns, *lists]):
                raise ValueError("a value is missing")
            yield batch
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # damage may claim any size
        raise LogError(f"{path} cannot be read: {_first_line(error)}") from None


def _read_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        if file.schema_arrow.names != SCHEMA.names:
            raise LogError(f"{path} is no exchange log", expected=", ".join(SCHEMA.names), got=str(file.schema_arrow))
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
                    if pa.ipc.read_schema(message) != SCHEMA:
                        raise LogError(f"{path} is no exchange log")
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


def _to_parquet(source: Path, target: Path) -> None:
    with pq.ParquetWriter(
        target,
        SCHEMA,
        compression="zstd",
        use_dictionary=_DICTIONARY,  # pyright: ignore[reportArgumentType]
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        write_statistics=["step", "index"],  # pyright: ignore[reportArgumentType]
    ) as writer:
        group: list[pa.RecordBatch] = []
        for batch in read_batches(source):
            group.append(batch)
            if sum(b.nbytes for b in group) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, SCHEMA))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_batches(group, SCHEMA))
