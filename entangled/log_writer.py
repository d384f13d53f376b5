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
from entangled.log_entry import Columns, Entry, entries_of, to_batch

# Encodings that shrink the bookkeeping columns before compression; predictions are stored plain.
_THINNED = "entangled.thinned"
"""In a Parquet file's metadata: predictions were dropped from it."""
_DELTA = ["step", "index", "sample_ids.list.element", "received_at", "wait_us", "bytes"]
_DICTIONARY = ["peer", "members.list.element", "weight", "digest", "rows", "classes", "staleness"]
BATCH_BYTES = 7 * 1024 * 1024
"""Of the predictions and the members' names in a record batch, at least; only the last of a flush has less. With
predictions of up to a megabyte it is less than `allocator.LARGEST`, so that joining them takes no new memory."""
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
        self._columns = Columns(start)
        """What was added and not written."""
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
            self._columns = Columns(self._chain)
            self.members = tuple(last["members"])
        for epoch, path in found:
            if path.suffix == ".arrow":
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
                    if len(self._columns) >= 1024:
                        self._write()
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
        """Add the rows of one exchange, or some of them; epochs must come in order, and a new one finishes the last."""
        if entry.position.epoch != self._epoch:
            self.finish_epoch()
            self._epoch = entry.position.epoch
            path = stream_path(self._run, self._epoch)
            self._stream = AppendStream(path, SCHEMA)
            atomic.sync(path.parent)
        prediction, rows, held = entry.predictions[0], len(entry.peers), self._columns.nbytes
        each = prediction.nbytes if prediction is not None else 0
        if held + each * rows < BATCH_BYTES:
            self._columns.add(entry)
            if self._columns.nbytes >= BATCH_BYTES:
                self._write()
            return
        begin = 0
        while begin < rows:
            end = begin + -(-(BATCH_BYTES - self._columns.nbytes) // each)
            self._columns.add(entry.part(begin, end))
            if self._columns.nbytes >= BATCH_BYTES:
                self._write()
            begin = end

    def _write(self) -> None:
        """Make what was added a record batch of the stream's."""
        if len(self._columns) and self._stream is not None:
            self._stream.append(self._columns.batch())
            self._columns = Columns(self._columns.link)

    def flush(self) -> None:
        """Put every appended row on disk."""
        self._write()
        if self._stream is not None and self._columns.link != self._chain:
            self._stream.sync()
            self._chain = self._columns.link

    def finish_epoch(self) -> None:
        """Turn the open epoch's stream into its Parquet partition."""
        if self._stream is None:
            return
        self.close()
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
