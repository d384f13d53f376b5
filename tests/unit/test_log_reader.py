"""Reading a log: whole exchanges, torn and damaged files, flat memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entangled.errors import LogError
from entangled.exchange_log import partitions, read_batches, stream_path
from entangled.log.reader import accuracies, blocks, exchanges, follow, last, open_run
from tests import logs


def test_exchanges_come_whole_and_in_order(tmp_path: Path) -> None:
    settings = logs.experiment(peers=("a", "b", "c"))
    run = open_run(logs.finished(tmp_path, settings))
    found = list(exchanges(run))
    assert [e.index for e in found] == list(range(6))
    for exchange, rows in zip(found, logs.rows(settings), strict=True):
        assert exchange.position == rows[0].position
        assert exchange.weight == rows[0].weight
        assert exchange.sample_ids.tolist() == rows[0].sample_ids.tolist()
        assert exchange.predictions.tobytes() == b"".join(r.prediction.tobytes() for r in rows)
        assert exchange.received_at.tolist() == [r.received_at for r in rows]
        assert exchange.wait_us.tolist() == [r.wait_us for r in rows]


def test_a_block_holds_batches_of_one_size(tmp_path: Path) -> None:
    run = open_run(logs.finished(tmp_path))
    assert [b.predictions.shape for b in blocks(run)] == [(2, 2, 4, 3), (1, 2, 2, 3)] * 2


def test_exchanges_that_parquet_splits_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(logs.finished(tmp_path, logs.experiment(peers=("a", "b", "c"))))
    whole = list(exchanges(run))
    monkeypatch.setattr("entangled.exchange_log._BATCH_BYTES", 1)  # a row at a time
    for one, other in zip(whole, exchanges(run), strict=True):
        assert one.index == other.index
        assert one.predictions.tobytes() == other.predictions.tobytes()


def test_only_the_epochs_that_are_asked_for_and_only_behind_an_index(tmp_path: Path) -> None:
    run = open_run(logs.finished(tmp_path))
    assert [e.index for e in exchanges(run, epochs=[1])] == [3, 4, 5]
    assert [e.index for e in exchanges(run, after=3)] == [4, 5]
    assert [e.index for e in last(run, 4)] == [2, 3, 4, 5]
    assert [e.index for e in last(run, 99)] == list(range(6))


def test_a_stream_cut_anywhere_reads_to_its_last_whole_batch_with_a_note(tmp_path: Path) -> None:
    run = open_run(logs.unfinished(tmp_path, 2))
    path = stream_path(tmp_path, 0)
    whole = path.read_bytes()
    schema, *batches = message_ends(whole)
    assert len(batches) == 2
    for cut in {*range(0, len(whole), 8), schema, *batches}:
        path.write_bytes(whole[:cut])
        notes: list[str] = []
        assert len(list(exchanges(run, notes.append))) == sum(end <= cut for end in batches)
        if cut in (0, schema, *batches):
            assert notes == []
        else:
            (note,) = notes
            assert note.startswith(f"{path}: the last ")


def message_ends(data: bytes) -> list[int]:
    source, ends = pa.BufferReader(data), list[int]()
    while source.tell() < len(data):
        pa.ipc.read_message(source)
        ends.append(source.tell())
    return ends


def test_a_power_cut_that_leaves_zeros_is_noted(tmp_path: Path) -> None:
    run = open_run(logs.unfinished(tmp_path, 2))
    with stream_path(tmp_path, 0).open("ab") as file:
        file.write(bytes(100))
    notes: list[str] = []
    assert len(list(exchanges(run, notes.append))) == 2
    assert "the last 100 bytes" in notes[0]


def test_damage_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    run = open_run(logs.finished(tmp_path))
    (_, path), *_ = partitions(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match=f"^{path} cannot be read"):
        list(exchanges(run))
    path.write_bytes(whole)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.drop_columns(["chain"]), path)
    with pytest.raises(LogError, match=f"{path} is no exchange log"):
        list(exchanges(run))
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(LogError, match=f"{path} does not hold whole exchanges"):
        list(exchanges(run))
    pq.write_table(table.take([1, 0, 2, 3, 4, 5]), path)
    with pytest.raises(LogError, match=f"{path} does not hold whole exchanges.*peers b, a"):
        list(exchanges(run))


def test_damage_inside_a_stream_is_no_torn_tail(tmp_path: Path) -> None:
    run = open_run(logs.unfinished(tmp_path, 2))
    path = stream_path(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[message_ends(data)[0] + 8] ^= 0xFF  # where the first record batch's metadata begins
    path.write_bytes(data)
    with pytest.raises(LogError, match=f"^{path} cannot be read"):
        list(exchanges(run))


def test_what_is_no_run_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="not a run's folder"):
        open_run(tmp_path)
    (tmp_path / "experiment.toml").write_text("")
    with pytest.raises(LogError, match="no peer has joined"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"run_id": "0"}')
    with pytest.raises(LogError, match="no peer has joined"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"samples": "ten", "classes": 3}')
    with pytest.raises(LogError, match="how many samples"):
        open_run(tmp_path)
    (tmp_path / "exchange" / "epoch=x").mkdir(parents=True)
    (tmp_path / "exchange" / "epoch=x" / "part-0.parquet").touch()
    with pytest.raises(LogError, match="not named after its epoch"):
        partitions(tmp_path)


def test_a_partition_that_is_finished_while_it_is_read_is_found(tmp_path: Path) -> None:
    recording = logs.Recording(tmp_path)
    recording.record(2)
    run = open_run(tmp_path)
    listed = partitions(tmp_path)
    assert [p.suffix for _, p in listed] == [".arrow"]
    reading = exchanges(run)
    first = next(reading)
    recording.finish()  # the stream is gone; an open file can still be read
    assert [first.index, *(e.index for e in reading)] == [0, 1, 2]
    assert sum(batch.num_rows for _, path in listed for batch in read_batches(path)) == 6
    assert [e.index for e in exchanges(run)] == list(range(6))


def test_accuracies_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    run = open_run(logs.finished(tmp_path))
    path = tmp_path / "peers" / "b" / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    notes: list[str] = []
    assert accuracies(run, notes.append) == {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.51}}
    (note,) = notes
    assert note.startswith(f"{path} can be read only in part")


def test_following_a_run_shows_every_exchange_once_and_ends_with_it(tmp_path: Path) -> None:
    recording = logs.Recording(tmp_path)
    run = open_run(tmp_path)
    script = iter([lambda: recording.record(1), lambda: None, lambda: recording.record(3), recording.finish])
    assert [e.index for e in follow(run, -1, lambda: next(script)())] == list(range(6))
    assert next(script, None) is None
