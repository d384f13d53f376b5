"""Writes a log's rows, or some of them, to one file of another format, streaming."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import call_function

from entangled.errors import EntangledError
from entangled.exchange_log import DERIVED, SCHEMA, partitions, read_batches
from entangled.log.reader import Note, Run, completed

COLUMNS = ("epoch", *SCHEMA.names)
_SCHEMA = pa.schema([pa.field("epoch", pa.int32(), nullable=False), *SCHEMA])

Write = Callable[[pa.RecordBatch], None]


def export(
    run: Run,
    target: Path,
    note: Note,
    epoch: int | None = None,
    peer: str | None = None,
    columns: Sequence[str] = COLUMNS,
) -> int:
    """Write rows to `target`, whose ending says how: `.csv`, `.parquet` or `.jsonl`.

    In text, lists are JSON lists, digests hexadecimal, times ISO; a float32 has as many digits as it needs.

    Args:
        run: as opened.
        target: is replaced when all is written.
        note: as for every reading of a log.
        epoch: only this one.
        peer: only this one's predictions.
        columns: of `COLUMNS`, in the order wanted.

    Returns:
        The number of rows.

    Raises:
        EntangledError: no such format, peer or column, or `target` cannot be written.
    """
    if target.suffix not in _FORMATS:
        raise EntangledError("the file's ending must name a format", expected=", ".join(_FORMATS), got=str(target))
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns:
        raise EntangledError("no such column", expected=", ".join(COLUMNS), got=", ".join(unknown))
    if peer is not None and peer not in run.peers:
        raise EntangledError("no such peer in this run", expected=" or ".join(run.peers), got=peer)
    schema = pa.schema([_SCHEMA.field(name) for name in columns])
    written = without = 0
    with _replacing(target) as temporary, _FORMATS[target.suffix](temporary, schema) as write:
        for batch in _batches(run, note, epoch, peer, not {*columns}.isdisjoint(DERIVED)):
            write(batch.select(list(columns)))
            written += batch.num_rows
            without += call_function("list_value_length", [batch.column("prediction")]).to_pylist().count(0)
    if without and "prediction" in columns:
        note(f"the predictions of {without} of {written} rows are not kept, and empty in {target}")
    return written


def _batches(run: Run, note: Note, epoch: int | None, peer: str | None, complete: bool) -> Iterator[pa.RecordBatch]:
    for found, path in partitions(run.folder):
        if epoch not in (None, found):
            continue
        for batch in completed(run, found, path, note) if complete else read_batches(path, note):
            rows = (
                batch if peer is None else batch.filter(call_function("equal", [batch.column("peer"), pa.scalar(peer)]))
            )
            epochs = pa.repeat(pa.scalar(found, pa.int32()), rows.num_rows)
            yield pa.RecordBatch.from_arrays([epochs, *rows.columns], schema=_SCHEMA)


@contextmanager
def _replacing(target: Path) -> Generator[Path]:
    """A path that becomes `target` when all went well, and is removed when not."""
    temporary = target.with_name(f"{target.name}.part")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise EntangledError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Generator[Write]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_batch


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Generator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(schema.names)
        yield lambda batch: writer.writerows(zip(*map(_texts, batch.columns), strict=True))


@contextmanager
def _jsonl(path: Path, schema: pa.Schema) -> Generator[Write]:
    keys = [json.dumps(name) for name in schema.names]
    quoted = [not (_is_number(kind) or pa.types.is_list(kind)) for kind in schema.types]

    def write(batch: pa.RecordBatch) -> None:
        columns = [
            [json.dumps(text) for text in _texts(column)] if quote else _texts(column)
            for column, quote in zip(batch.columns, quoted, strict=True)
        ]
        for row in zip(*columns, strict=True):
            file.write("{" + ", ".join(f"{key}: {text}" for key, text in zip(keys, row, strict=True)) + "}\n")

    with path.open("w", encoding="utf-8") as file:
        yield write


_FORMATS = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}


def _texts(column: Any) -> list[str]:
    """A column's values as text; formatted by Arrow, a column at a time."""
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        return [json.dumps(names, ensure_ascii=False) for names in column.to_pylist()]
    if pa.types.is_list(column.type):
        items = pa.ListArray.from_arrays(column.offsets, column.values.cast(pa.string()))
        return [f"[{text}]" for text in call_function("binary_join", [items, pa.scalar(", ")]).to_pylist()]
    if pa.types.is_fixed_size_binary(column.type):
        return [value.hex() for value in column.to_pylist()]
    if pa.types.is_timestamp(column.type):
        return [text.replace(" ", "T") for text in column.cast(pa.string()).to_pylist()]
    return column.cast(pa.string()).to_pylist()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
