"""Takes logs apart and puts them together again, damaged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entangled.exchange_log import SCHEMA, partitions, read_batches

Rows = list[dict[str, Any]]


def take_apart(run: Path) -> dict[Path, Rows]:
    """The rows of every file of a log, as plain values."""
    return {path: [row for batch in read_batches(path) for row in batch.to_pylist()] for _, path in partitions(run)}


def put_together(files: dict[Path, Rows]) -> None:
    """Write the files again, whatever is in them."""
    for path, rows in files.items():
        table = pa.Table.from_pylist(rows, SCHEMA)
        if path.suffix == ".parquet":
            pq.write_table(table, path)
            continue
        with path.open("wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:
            stream.write_table(table, max_chunksize=2)


def flip(row: dict[str, Any], column: str, place: int = 0, bit: int = 0) -> dict[str, Any]:
    """A copy of a row with one bit of one column's value flipped: of the `place`-th item or byte, modulo how many."""
    return {**row, column: _flipped(row[column], SCHEMA.field(column).type, place, bit)}


def _flipped(value: Any, kind: pa.DataType, place: int, bit: int) -> Any:
    if value is None:
        return bytes(16) if pa.types.is_fixed_size_binary(kind) else 0.5
    if pa.types.is_list(kind):
        items = list(value)
        if not items:
            return [1]
        items[place % len(items)] = _flipped(items[place % len(items)], kind.value_type, 0, bit)
        return items
    if isinstance(value, bytes):
        data = bytearray(value)
        data[place % len(data)] ^= 1 << bit % 8
        return bytes(data)
    if isinstance(value, str):
        return _flipped(value.encode(), pa.binary(), place, bit % 5).decode()  # stays ASCII
    if pa.types.is_timestamp(kind):
        return value + timedelta(microseconds=1 << bit % 20)
    if pa.types.is_float32(kind):
        bits = np.array([value], np.float32).view(np.uint32)
        bits ^= np.uint32(1 << bit % 32)
        return bits.view(np.float32)[0].item()
    return value ^ (1 << bit % (kind.bit_width - 1))
