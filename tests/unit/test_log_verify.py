"""What `entangled log verify` proves, and how it names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from entangled.alignment import Position
from entangled.distribution import STATISTICS, prediction_digest
from entangled.exchange_log import chain, from_batch, genesis, partition_path, read, stream_path
from entangled.log.reader import open_run
from entangled.log.verify import Fault, Verdict, verify
from entangled.log_entry import to_batch
from tests import logs
from tests.damage import Rows, flip, put_together, take_apart
from tests.support import said_the_same


def verdict(run: Path, notes: list[str] | None = None) -> Verdict:
    return verify(open_run(run), (notes if notes is not None else []).append)


def fault(run: Path) -> Fault:
    found = verdict(run).fault
    assert found is not None
    return found


@pytest.mark.parametrize("peers", [("a", "b"), ("c", "b", "a")])
def test_a_good_log_has_no_fault(tmp_path: Path, peers: tuple[str, ...]) -> None:
    notes: list[str] = []
    assert verdict(logs.finished(tmp_path, logs.experiment(peers)), notes) == Verdict(6, 6, True, 0, None)
    assert notes == []


def swap(rows: Rows, i: int, j: int) -> Rows:
    rows[i], rows[j] = rows[j], rows[i]
    return rows


# The second epoch's rows are: step 0 of a and b (index 3), step 1 of a and b (4), step 2 of a and b (5).
DAMAGE: dict[str, tuple[Callable[[Rows], Rows], Position, str, str]] = {
    "removed": (lambda r: r[:2] + r[3:], Position(1, 1), "a", "a later row stands here: this one is missing"),
    "first removed": (lambda r: r[1:], Position(1, 0), "a", "a later row stands here: this one is missing"),
    "last removed": (lambda r: r[:-1], Position(1, 2), "b", "the log ends before this row"),
    "an exchange removed": (lambda r: r[:2] + r[4:], Position(1, 1), "a", "a later row stands here"),
    "the last exchange removed": (lambda r: r[:-2], Position(1, 2), "a", "the log ends before this row"),
    "duplicated": (lambda r: r[:3] + r[2:], Position(1, 1), "b", "an earlier row stands here: duplicated"),
    "duplicated elsewhere": (lambda r: [*r[:5], r[0], r[5]], Position(1, 2), "b", "an earlier row stands here"),
    "peers swapped": (lambda r: swap(r, 2, 3), Position(1, 1), "a", "a later row stands here"),
    "positions swapped": (lambda r: swap(r, 0, 2), Position(1, 0), "a", "a later row stands here"),
    "of another peer": (lambda r: [*r[:3], {**r[3], "peer": "z"}, *r[4:]], Position(1, 1), "b", "of no peer"),
    "step": (lambda r: [flip(r[0], "step", bit=4), *r[1:]], Position(1, 0), "a", "index is not its position's"),
    "index": (lambda r: [flip(r[0], "index"), *r[1:]], Position(1, 0), "a", "index is not its position's"),
    "λ": (lambda r: [*r[:5], {**r[5], "weight": 0.25}], Position(1, 2), "b", "λ is not the schedule's"),
    "sample ids": (
        lambda r: [flip(r[0], "sample_ids", 2, 8), *r[1:]],
        Position(1, 0),
        "a",
        "sample 2 of the batch is not the one that the sample order gives",
    ),
    "fewer sample ids": (
        lambda r: [{**r[0], "sample_ids": r[0]["sample_ids"][1:]}, *r[1:]],
        Position(1, 0),
        "a",
        "the number of sample ids is wrong",
    ),
    "digest": (lambda r: [r[0], flip(r[1], "digest"), *r[2:]], Position(1, 0), "b", "the batch digest is not"),
    "shape": (lambda r: [{**r[0], "rows": 3, "classes": 4}, *r[1:]], Position(1, 0), "a", "shape is wrong"),
    "size": (lambda r: [{**r[0], "rows": 3}, *r[1:]], Position(1, 0), "a", "does not fill its shape"),
    "no distribution": (
        lambda r: [{**r[0], "prediction": [0.5, *r[0]["prediction"][1:]]}, *r[1:]],
        Position(1, 0),
        "a",
        "the prediction is no distribution: row 0 does not sum to 1",
    ),
    "prediction": (
        lambda r: [*r[:4], flip(r[4], "prediction", 3), r[5]],
        Position(1, 2),
        "a",
        "the hash chain breaks",
    ),
    "a digest beside the prediction": (
        lambda r: [{**r[0], "prediction_digest": prediction_digest(np.float32(r[0]["prediction"]))}, *r[1:]],
        Position(1, 0),
        "a",
        "what is stored beside the prediction is not exchange.log = full's",
    ),
    "statistics beside the prediction": (
        lambda r: [{**r[0], **dict.fromkeys(STATISTICS, 0.5)}, *r[1:]],
        Position(1, 0),
        "a",
        "what is stored beside the prediction is not exchange.log = full's",
    ),
    "one of them": (lambda r: [{**r[0], "entropy": 0.5}, *r[1:]], Position(1, 0), "a", "lacks some statistics"),
    "no prediction": (lambda r: [{**r[0], "prediction": []}, *r[1:]], Position(1, 0), "a", "the prediction is missing"),
    "staleness": (lambda r: [flip(r[0], "staleness"), *r[1:]], Position(1, 0), "a", "the staleness is not"),
    "received at": (lambda r: [flip(r[0], "received_at"), *r[1:]], Position(1, 0), "a", "the hash chain breaks"),
    "wait": (lambda r: [flip(r[0], "wait_us"), *r[1:]], Position(1, 0), "a", "the hash chain breaks"),
    "bytes": (lambda r: [flip(r[0], "bytes"), *r[1:]], Position(1, 0), "a", "the hash chain breaks"),
    "chain": (lambda r: [*r[:2], flip(r[2], "chain"), *r[3:]], Position(1, 1), "a", "the hash chain breaks"),
}


@pytest.mark.parametrize(("log", "every", "without"), [("sampled", 2, 3), ("sampled", 100, 5), ("statistics", None, 6)])
def test_a_thinned_log_has_no_fault_and_says_what_it_cannot_prove(
    tmp_path: Path, log: str, every: int | None, without: int
) -> None:
    settings = logs.keeping(log) if every is None else logs.keeping(log, log_every=every)
    notes: list[str] = []
    assert verdict(logs.finished(tmp_path, settings), notes) == Verdict(6, 6, True, without, None)
    (note,) = notes
    assert note.startswith(f"the predictions of {without} of 6 exchanges are not kept (exchange.log = {log}")
    assert "cannot be proven" in note
    full = logs.finished(tmp_path / "full", logs.keeping("sampled", log_every=1))
    assert [row.prediction is None for row, _ in read(tmp_path)].count(True) == 2 * without
    for (a, _), (b, _) in zip(read(tmp_path), read(full), strict=True):
        assert said_the_same(a._replace(prediction=None), b._replace(prediction=None))


# What a thinned log's predictions may not be, on the second epoch of one that keeps every second exchange: index 4.
THINNED_DAMAGE: dict[str, tuple[Callable[[Rows], Rows], Position, str, str]] = {
    "a kept one lost": (lambda r: [*r[:2], {**r[2], "prediction": []}, *r[3:]], Position(1, 1), "a", "is missing"),
    "a kept one changed": (lambda r: [*r[:2], flip(r[2], "prediction"), *r[3:]], Position(1, 1), "a", "its digest"),
    "one invented": (lambda r: [{**r[0], "prediction": [1.0, 0.0, 0.0] * 4}, *r[1:]], Position(1, 0), "a", "digest"),
    "its digest": (lambda r: [flip(r[0], "prediction_digest"), *r[1:]], Position(1, 0), "a", "chain breaks"),
    **{
        name: (lambda r, name=name: [flip(r[0], name, bit=3), *r[1:]], Position(1, 0), "a", "chain breaks")
        for name in STATISTICS
    },
}


@pytest.mark.parametrize("damage", THINNED_DAMAGE)
def test_damage_to_a_thinned_log_is_found(tmp_path: Path, damage: str) -> None:
    change, position, peer, what = THINNED_DAMAGE[damage]
    path = partition_path(logs.finished(tmp_path, logs.keeping("sampled", log_every=2)), 1)
    files = take_apart(tmp_path)
    put_together({path: change(files[path])})
    found = fault(tmp_path)
    assert (found.file, found.position, found.peer) == (str(path), position, peer)
    assert what in found.what
    assert found.expected != found.got


def test_an_exchange_keeps_all_predictions_or_none(tmp_path: Path) -> None:
    path = partition_path(logs.unfinished(tmp_path, 5, logs.keeping("statistics")), 0)
    files = take_apart(tmp_path)
    put_together({path: [files[path][0], {**files[path][1], "prediction": []}, *files[path][2:]]})
    found = fault(tmp_path)
    assert (found.position, found.peer) == (Position(0, 0), "b")
    assert "missing, while other peers' are kept" in found.what


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_its_place_named(tmp_path: Path, damage: str) -> None:
    change, position, peer, what = DAMAGE[damage]
    path = partition_path(logs.finished(tmp_path), 1)
    files = take_apart(tmp_path)
    put_together({path: change(files[path])})
    found = fault(tmp_path)
    assert (found.file, found.position, found.peer) == (str(path), position, peer)
    assert what in found.what
    assert found.expected != found.got
    assert verdict(tmp_path).exchanges == 3 + position.step
    assert "\n" not in str(found)


def test_rows_in_the_wrong_file_are_found(tmp_path: Path) -> None:
    logs.finished(tmp_path)
    first, second = (partition_path(tmp_path, epoch) for epoch in (0, 1))
    files = take_apart(tmp_path)
    put_together({first: files[second], second: files[first]})
    assert (fault(tmp_path).file, fault(tmp_path).position) == (str(first), Position(0, 0))
    put_together({first: files[first] + files[second][:2], second: files[second][2:]})
    assert (fault(tmp_path).file, fault(tmp_path).position) == (str(first), Position(1, 0))


def test_a_file_that_is_there_twice_or_not_at_all_is_found(tmp_path: Path) -> None:
    logs.finished(tmp_path)
    first, second = (partition_path(tmp_path, epoch) for epoch in (0, 1))
    copy = shutil.copy(first, first.with_name("part-1.parquet"))
    assert (fault(tmp_path).file, fault(tmp_path).position) == (str(copy), Position(1, 0))
    copy.unlink()
    copy = shutil.copy(second, second.with_name("part-1.parquet"))
    assert str(fault(tmp_path)).startswith(f"{copy}: there is a row behind the run's last (expected no more rows; got ")
    copy.unlink()
    assert verdict(tmp_path).fault is None
    first.unlink()
    assert (fault(tmp_path).file, fault(tmp_path).position) == (str(second), Position(0, 0))


def test_a_file_that_cannot_be_read_is_a_fault_at_the_first_row_in_it(tmp_path: Path) -> None:
    path = partition_path(logs.finished(tmp_path), 1)
    path.write_bytes(path.read_bytes()[:-20])
    found = fault(tmp_path)
    assert (found.file, found.position, found.peer) == (str(path), Position(1, 0), "a")
    assert found.what.startswith("cannot be read: ")


def rewrite(run: Path, change: Callable[[int, Any], Any]) -> None:
    """Change rows and give the log a chain that is consistent again, as somebody would who knows how."""
    link, number = genesis((run / "experiment.toml").read_text()), 0
    for path, rows in take_apart(run).items():
        table = pq.read_table(path, partitioning=None)
        epoch = int(path.parent.name.removeprefix("epoch="))
        written = []
        for batch in table.to_batches():
            for row, _ in from_batch(batch, epoch):
                changed = change(number, row)
                link, number = chain(link, changed), number + 1
                written.append((changed, link))
        assert len(written) == len(rows)
        pq.write_table(type(table).from_batches([to_batch(*zip(*written, strict=True))]), path)


def test_a_log_rewritten_with_a_chain_of_its_own_is_not_the_runs(tmp_path: Path) -> None:
    logs.finished(tmp_path)
    rewrite(tmp_path, lambda _, row: row)
    assert verdict(tmp_path).fault is None

    def turned(number: int, row: Any) -> Any:
        return row._replace(received_at=row.received_at + 1) if number == 4 else row

    rewrite(tmp_path, turned)
    found = fault(tmp_path)
    assert found.file == str(tmp_path / "summary.json")
    assert found.what == "the hash chain's end is not the log's"


@pytest.mark.parametrize("place", range(len(STATISTICS)))
def test_statistics_that_are_not_the_predictions_are_found_though_the_chain_holds(tmp_path: Path, place: int) -> None:
    def wrong(number: int, row: Any) -> Any:
        changed = row.statistics.copy()
        changed[place] += 1e-3
        return row._replace(statistics=changed) if number == 8 else row

    rewrite(logs.finished(tmp_path, logs.keeping("sampled", log_every=1)), wrong)
    found = fault(tmp_path)
    assert (found.position, found.peer) == (Position(1, 1), "a")
    assert found.what == f"{STATISTICS[place]} is not that of the predictions"


def test_another_experiment_is_not_the_logs(tmp_path: Path) -> None:
    toml = logs.finished(tmp_path) / "experiment.toml"
    text = toml.read_text()
    toml.write_text(text.replace("patience = 600.0", "patience = 601.0"))  # changes nothing that a row would show
    found = fault(tmp_path)
    assert found.what == "the hash chain does not start from experiment.toml, or this is not the row that was written"
    assert found.position == Position(0, 0)
    toml.write_text(text.replace("seed = 0", "seed = 1"))
    assert "sample order" in fault(tmp_path).what
    toml.write_text(text.replace("start = 0.0", "start = 0.5"))
    assert fault(tmp_path).what == "λ is not the schedule's"


def test_the_summary_must_be_the_logs(tmp_path: Path) -> None:
    summary = logs.finished(tmp_path) / "summary.json"
    values = json.loads(summary.read_text())
    summary.write_text(json.dumps({**values, "exchanges": 7}))
    assert str(fault(tmp_path)) == f"{summary}: the number of exchanges is not the log's (expected 6; got 7)"
    summary.write_text(json.dumps({**values, "chain": "00"}))
    assert fault(tmp_path).got == "00"


@pytest.mark.parametrize("exchanges", [1, 3, 5, 6])
def test_an_unfinished_log_is_proven_to_its_last_whole_record(tmp_path: Path, exchanges: int) -> None:
    notes: list[str] = []
    assert verdict(logs.unfinished(tmp_path, exchanges), notes) == Verdict(exchanges, 6, False, 0, None)
    (note,) = notes
    assert f"its log holds {exchanges} of 6 exchanges" in note
    assert "cannot be proven" in note


def test_a_torn_log_is_proven_and_noted_but_not_that_of_a_finished_run(tmp_path: Path) -> None:
    path = stream_path(logs.unfinished(tmp_path, 5), 1)
    path.write_bytes(path.read_bytes()[:-50])
    notes: list[str] = []
    assert verdict(tmp_path, notes) == Verdict(4, 6, False, 0, None)
    assert len(notes) == 2
    assert str(path) in notes[0]
    (tmp_path / "summary.json").write_text(json.dumps({"exchanges": 6, "chain": ""}))
    found = fault(tmp_path)
    assert (found.file, found.position, found.peer) == (str(path), Position(1, 1), "a")


def test_an_exchange_without_its_last_peer_is_a_fault_even_in_an_unfinished_log(tmp_path: Path) -> None:
    path = stream_path(logs.unfinished(tmp_path, 2), 0)
    files = take_apart(tmp_path)
    put_together({path: files[path][:-1]})
    assert (fault(tmp_path).position, fault(tmp_path).peer) == (Position(0, 1), "b")


def test_the_first_of_several_faults_is_named(tmp_path: Path) -> None:
    path = partition_path(logs.finished(tmp_path), 0)
    files = take_apart(tmp_path)
    put_together({p: [flip(row, "bytes") for row in rows] for p, rows in files.items()})
    assert (fault(tmp_path).file, fault(tmp_path).position) == (str(path), Position(0, 0))
    assert len(list(read(tmp_path))) == 12
