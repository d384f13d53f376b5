"""Writes the exchange log: appends durably, finishes epochs, thins them, goes on where a killed writer stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from entangled import atomic, faults
from entangled.append_stream import AppendStream
from entangled.errors import FormatError, LogError
from entangled.exchange_log import (
    SCHEMA,
    Row,
    chain,
    check_format,
    folder,
    from_batch,
    partition_path,
    partitions,
    read_batches,
    stream_path,
)
from entangled.log_entry import Columns, Entry, Gathered, entries_of, to_batch

# Encodings that shrink the bookkeeping columns before compression; predictions are stored plain.
_THINNED = "entangled.thinned"
"""In a Parquet file's metadata: predictions were dropped from it."""
_DELTA = ["step", "index", "sample_ids.list.element", "received_at", "wait_us", "bytes"]
_DICTIONARY = ["peer", "members.list.element", "weight", "digest", "rows", "classes", "staleness"]
_ROW_GROUP_BYTES = 16 * 1024 * 1024


class Writer:
    """Appends a run's rows. Not thread-safe: one thread owns it.

    A `flush` returns when its rows are on disk (fsync). An epoch that is finished becomes a Parquet file, whole or not
    at all. A writer that was killed leaves a log that the next one goes on with: up to the last whole exchange whose
    chain holds.
    """

    def __init__(self, run: Path, start: bytes) -> None:
        """Begin a log, or go on with what is there.

        Args:
            run: the run's folder.
            start: `genesis` of the run's experiment.

        Raises:
            LogError: a finished part of the log that is there cannot be read.
            FormatError: what is there was written by a version whose format is another.
        """
        atomic.make_folder(folder(run))
        self._run = run
        self._chain = start
        self.resumed = 0
        """How many exchanges, from the first, were there already."""
        self.members: tuple[str, ...] = ()
        """Who took part in the last one of those."""
        self._epoch = self._thinned = -1
        self._gathered = Gathered(start)
        """What was added and not written."""
        self._link = start
        """The chain value of the last row that was written, on disk or not."""
        self._stream: AppendStream | None = None
        self._resume()

    @property
    def chain(self) -> bytes:
        """The chain value of the last row on disk."""
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
                    check_format(finished[-1], file.schema_arrow)
                    last = file.read_row_group(file.num_row_groups - 1, ["index", "members", "chain"]).to_pylist()[-1]
            except (pa.ArrowInvalid, OSError, IndexError) as error:
                raise LogError(f"{finished[-1]} cannot be read: {error}") from None
            self.resumed, self._chain = last["index"] + 1, last["chain"]
            self._gathered, self._link = Gathered(self._chain), self._chain
            self.members = tuple(last["members"])
        unfinished = [(epoch, path) for epoch, path in found if path.suffix == ".arrow"]
        for _, path in unfinished[1:]:
            path.unlink()  # no writer leaves two: somebody copied the first one before it was complete
        for epoch, path in unfinished[:1]:
            self._resume_stream(epoch, path)

    def _resume_stream(self, epoch: int, path: Path) -> None:
        """Copy the whole exchanges of an unfinished epoch to a new stream, and go on in that one."""
        temporary = atomic.temporary_for(path, ".tmp")
        self._epoch = epoch
        self._stream = AppendStream(temporary, SCHEMA)
        rows: list[Row] = []
        link = self._chain
        try:
            for row, stored in (pair for batch in read_batches(path) for pair in from_batch(batch, epoch)):
                link = chain(link, row)
                if link != stored or row.index != self.resumed:
                    break
                rows.append(row)
                if len(rows) == len(row.members):
                    self.append(*rows)
                    self.resumed, rows = self.resumed + 1, []
                    self.members = row.members
                    if self.resumed % 1024 == 0:
                        self.write(self._gathered.take())
        except FormatError:
            raise
        except LogError:
            pass  # a torn tail: never synced, so nobody was told that it was
        self.flush()
        atomic.sync(temporary)
        faults.point("coordinator", "in resuming")
        temporary.replace(path)
        atomic.sync(path.parent)

    def append(self, *rows: Row) -> None:
        """Add rows, in order; epochs must come in order. A new epoch finishes the one before."""
        for entry in entries_of(rows):
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Add the rows of one exchange, or some of them, as `append` does."""
        if entry.position.epoch != self._epoch:
            self.write(self._gathered.take())
            self._turn_to(entry.position.epoch)
        self._gathered.add(entry)
        if self._gathered.is_batch:
            self.write(self._gathered.take())

    def write(self, batches: Iterable[tuple[int, Columns]]) -> None:
        """Write what was gathered, here or by somebody else: each is a record batch of its epoch's stream."""
        for epoch, columns in batches:
            if epoch != self._epoch:
                self._turn_to(epoch)
            if self._stream is not None:
                self._stream.append(columns.batch())
                self._link = columns.link

    def _turn_to(self, epoch: int) -> None:
        self._finish()
        self._epoch, path = epoch, stream_path(self._run, epoch)
        self._stream = AppendStream(path, SCHEMA)
        atomic.sync(path.parent)

    def flush(self) -> None:
        """Put every row that was added, or written, on disk."""
        self.write(self._gathered.take())
        self._sync()

    def _sync(self) -> None:
        if self._stream is not None and self._link != self._chain:
            self._stream.sync()
            self._chain = self._link

    def finish_epoch(self) -> None:
        """Turn the open epoch's stream into its Parquet partition."""
        self.flush()
        self._finish()

    def _finish(self) -> None:
        if self._stream is None:
            return
        self._close()
        source, target = stream_path(self._run, self._epoch), partition_path(self._run, self._epoch)
        atomic.make_folder(target.parent)
        atomic.write(target, lambda file: _to_parquet(_passing(read_batches(source)), file), suffix=".tmp")
        faults.point("coordinator", "between partition and stream")
        source.unlink()

    def thin(self, before: int, keeps: Callable[[int], bool]) -> None:
        """Drop predictions from every finished epoch that lies wholly before index `before`; all else stays as it is.

        Args:
            before: nobody will ask for predictions of earlier positions again.
            keeps: whether the predictions of the exchange at an index are kept all the same.
        """
        for epoch, path in partitions(self._run):
            if path.suffix != ".parquet" or epoch <= self._thinned:
                continue
            with pq.ParquetFile(path) as file:
                end = _end(file)
                thinned = _THINNED.encode() in (file.metadata.metadata or {})
            if end > before:
                return
            if not thinned:
                rows = _without_predictions(path, epoch, keeps)
                atomic.write(path, lambda file, rows=rows: _to_parquet(rows, file, {_THINNED: "1"}), suffix=".tmp")
            self._thinned = epoch

    def close(self) -> None:
        """Flush and close, leaving an unfinished epoch as a stream."""
        self.flush()
        self._close()

    def _close(self) -> None:
        self._sync()
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def _end(file: pq.ParquetFile) -> int:
    """One more than the last index in a partition."""
    metadata, place = file.metadata, SCHEMA.get_field_index("index")
    return 1 + max(metadata.row_group(i).column(place).statistics.max for i in range(metadata.num_row_groups))


def _passing(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        faults.point("coordinator", "in partition")
        yield batch


def _without_predictions(path: Path, epoch: int, keeps: Callable[[int], bool]) -> Iterator[pa.RecordBatch]:
    for batch in read_batches(path):
        faults.point("coordinator", "in thinning")
        rows, links = zip(*from_batch(batch, epoch), strict=True)
        yield to_batch([row if keeps(row.index) else row._replace(prediction=None) for row in rows], links)


def _to_parquet(batches: Iterable[pa.RecordBatch], target: Path, metadata: dict[str, str] | None = None) -> None:
    with pq.ParquetWriter(
        target,
        SCHEMA,
        compression="zstd",
        use_dictionary=_DICTIONARY,  # pyright: ignore[reportArgumentType]
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        write_statistics=["step", "index"],  # pyright: ignore[reportArgumentType]
    ) as writer:
        group: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            group.append(batch)
            size += batch.nbytes
            if size >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, SCHEMA))
                group.clear()
                size = 0
        if group:
            writer.write_table(pa.Table.from_batches(group, SCHEMA))
        if metadata:
            writer.add_key_value_metadata(metadata)
