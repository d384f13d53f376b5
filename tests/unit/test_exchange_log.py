"""The exchange log: what is written is read back to the bit, whatever happened to the writer."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from entangled.alignment import Position
from entangled.distribution import STATISTICS
from entangled.errors import LogError
from entangled.exchange_log import (
    SCHEMA,
    Row,
    chain,
    genesis,
    partition_path,
    partitions,
    read,
    read_batches,
    stream_path,
)
from entangled.log_entry import Columns, entries_of
from tests.support import GENESIS, log_rows, same, writer


def write(run: Path, rows: list[Row], flush_every: int = 2) -> None:
    """Write the rows, finishing every epoch but the last, which stays a stream."""
    log = writer(run)
    for number, row in enumerate(rows, 1):
        log.append(row)
        if number % flush_every == 0:
            log.flush()
    log.close()


def test_rows_are_read_back_to_the_bit_from_parquet_and_stream(tmp_path: Path) -> None:
    rows = log_rows(epochs=3)
    write(tmp_path, rows)
    assert [path.suffix for _, path in partitions(tmp_path)] == [".parquet", ".parquet", ".arrow"]
    back = list(read(tmp_path))
    assert len(back) == len(rows)
    assert all(same(a, b) for a, (b, _) in zip(rows, back, strict=True))
    link = GENESIS
    for row, stored in back:
        link = chain(link, row)
        assert stored == link


@pytest.mark.parametrize(
    "lacking",
    [{}, {"prediction": None}, {"prediction_digest": None, "statistics": None}],
    ids=["sampled", "statistics", "full"],
)
def test_the_chain_is_what_the_protocol_page_says(lacking: dict[str, None]) -> None:
    """From docs/protocol.md alone, so that a log that is there verifies with the next version, too."""
    rows = [row._replace(**lacking) for row in log_rows(("a", "ü"))]
    link, expected = GENESIS, list[bytes]()
    for row in rows:
        names = row.peer.encode(), ",".join(row.members).encode()
        numbers = row.position.epoch, row.position.step, row.index, row.weight, *row.shape, row.staleness
        numbers = *numbers, row.received_at, row.wait_us, row.bytes, *map(len, names)
        digest = row.prediction_digest or blake3(np.array(row.prediction, "<f4").tobytes()).digest(16)
        measured = b"" if row.statistics is None else np.array(row.statistics, "<f4").tobytes()
        ids = np.array(row.sample_ids, "<i8").tobytes()
        parts = link, struct.pack("<iiqfiiiqqiii", *numbers), *names, row.digest, ids, digest, measured
        link = hashlib.blake2b(b"".join(parts), digest_size=16).digest()
        expected.append(link)
    columns = Columns(GENESIS)
    for entry in entries_of(rows):
        columns.add(entry)
    assert columns.batch()["chain"].to_pylist() == expected
    assert chain(expected[-2], rows[-1]) == expected[-1]


def test_a_finished_log_is_one_parquet_file_for_each_epoch(tmp_path: Path) -> None:
    log = writer(tmp_path)
    rows = log_rows()
    for row in rows:
        log.append(row)
    log.finish_epoch()
    assert log.chain == list(read(tmp_path))[-1][1]
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["exchange/epoch=0000/part-0.parquet", "exchange/epoch=0001/part-0.parquet"]
    assert all(same(a, b) for a, (b, _) in zip(rows, read(tmp_path), strict=True))


def test_other_tools_read_the_partitions_with_the_designs_columns(tmp_path: Path) -> None:
    log = writer(tmp_path)
    rows = log_rows()
    for row in rows:
        log.append(row)
    log.finish_epoch()
    table = pyarrow.dataset.dataset(tmp_path / "exchange", format="parquet", partitioning="hive").to_table()
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "step": "int32",
        "index": "int64",
        "peer": "string",
        "members": "list<element: string not null>",
        "weight": "float",
        "sample_ids": "list<element: int64 not null>",
        "digest": "fixed_size_binary[16]",
        "rows": "int32",
        "classes": "int32",
        "prediction": "list<element: float not null>",
        "prediction_digest": "fixed_size_binary[16]",
        **dict.fromkeys(STATISTICS, "float"),
        "staleness": "int32",
        "received_at": "timestamp[us, tz=UTC]",
        "wait_us": "int64",
        "bytes": "int32",
        "chain": "fixed_size_binary[16]",
        "epoch": "int32",
    }
    by_place = table.sort_by([("index", "ascending"), ("peer", "ascending")]).to_pylist()
    for row, found in zip(rows, by_place, strict=True):
        assert (found["epoch"], found["step"]) == row.position
        assert np.float32(found["prediction"]).tobytes() == row.prediction.tobytes()
        assert found["sample_ids"] == row.sample_ids.tolist()
        assert found["received_at"].timestamp() * 1e6 == pytest.approx(row.received_at, abs=1)


def test_guarantee_6_what_was_flushed_is_there_though_the_writer_never_closed(tmp_path: Path) -> None:
    rows = log_rows(epochs=1)
    log = writer(tmp_path)
    for number, row in enumerate(rows):
        log.append(row)
        if number == 3:
            log.flush()
    assert [row.index for row, _ in read(tmp_path)] == [0, 0, 1, 1]


def test_a_stream_torn_at_any_byte_is_read_up_to_its_last_whole_batch(tmp_path: Path) -> None:
    rows = log_rows(epochs=1)
    write(tmp_path, rows)
    path = stream_path(tmp_path, 0)
    whole = path.read_bytes()
    seen = set()
    for size in (*range(0, len(whole), 17), len(whole)):
        path.write_bytes(whole[:size])
        back = [row for row, _ in read(tmp_path)]
        assert len(back) % 2 == 0
        assert all(same(a, b) for a, b in zip(rows, back, strict=False))
        seen.add(len(back))
    assert seen == {0, 2, 4, 6}


def test_an_epoch_is_parquet_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed between writing the Parquet file and removing the stream: the epoch is read once."""
    rows = log_rows(epochs=1)
    write(tmp_path, rows)
    stream = stream_path(tmp_path, 0).read_bytes()
    other = tmp_path / "other"
    log = writer(other)
    for row in rows:
        log.append(row)
    log.finish_epoch()
    stream_path(other, 0).write_bytes(stream)
    assert [path for _, path in partitions(other)] == [partition_path(other, 0)]
    assert all(same(a, b) for a, (b, _) in zip(rows, read(other), strict=True))


def test_the_chain_hangs_on_every_column_and_on_the_row_before() -> None:
    row = log_rows()[0]
    changed = {
        "position": [Position(0, 1), Position(1, 0)],
        "index": [1],
        "peer": ["b"],
        "members": [("a",), ("b", "a"), ("a", "b", "c")],
        "weight": [0.5],
        "sample_ids": [row.sample_ids[::-1], row.sample_ids[:-1]],
        "digest": [bytes(16)],
        "shape": [(3, 4), (4, 4)],
        "prediction_digest": [bytes(16)],
        "statistics": [row.statistics[::-1], np.nextafter(row.statistics, np.float32(2)), None],
        "staleness": [1],
        "received_at": [row.received_at + 1],
        "wait_us": [1],
        "bytes": [1],
    }
    assert {*changed, "prediction"} == set(Row._fields)
    assert chain(GENESIS, row._replace(prediction=None)) == chain(GENESIS, row)  # its digest stands for it
    others = [row._replace(**{name: value}) for name, values in changed.items() for value in values]
    links = {chain(GENESIS, r) for r in [row, *others]}
    assert len(links) == 1 + len(others)
    assert chain(genesis("name = 'other'"), row) not in links


def test_a_change_in_a_file_breaks_the_chain(tmp_path: Path) -> None:
    rows = log_rows(epochs=1)
    log = writer(tmp_path)
    for row in rows:
        log.append(row)
    log.finish_epoch()
    path = partition_path(tmp_path, 0)
    table = pq.read_table(path, partitioning=None)
    weights = table["weight"].to_pylist()
    weights[2] += 0.25
    place = table.schema.get_field_index("weight")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(weights, pa.float32())), path)
    link, broken = GENESIS, []
    for number, (row, stored) in enumerate(read(tmp_path)):
        link = chain(link, row)
        if link != stored:
            broken.append(number)
        link = stored
    assert broken == [2]


def test_a_stream_with_columns_of_other_types_is_no_log(tmp_path: Path) -> None:
    place = SCHEMA.get_field_index("index")
    path = stream_path(tmp_path, 0)
    path.parent.mkdir(parents=True)
    pa.ipc.new_stream(str(path), SCHEMA.set(place, pa.field("index", pa.int32(), nullable=False))).close()
    with pytest.raises(LogError, match="is no exchange log"):
        list(read_batches(path))


@pytest.mark.parametrize("finished", [True, False])
def test_a_log_of_another_format_is_refused_and_left_alone(tmp_path: Path, finished: bool) -> None:
    older, refused = SCHEMA.remove_metadata(), r"another version .*\(expected 2; got 1\)"
    path = partition_path(tmp_path, 0) if finished else stream_path(tmp_path, 0)
    path.parent.mkdir(parents=True)
    if finished:
        pq.write_table(older.empty_table(), path)
    else:
        pa.ipc.new_stream(str(path), older).close()
    before = path.read_bytes()
    for use in (lambda: list(read_batches(path)), lambda: writer(tmp_path)):
        with pytest.raises(LogError, match=refused):
            use()
    assert path.read_bytes() == before
