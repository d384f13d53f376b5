"""Logs of runs from which peers were missing: nothing is invented for them, and nobody can be taken away.

In these runs all of a, b and c are there at first; then a and c; c alone; b and c; a alone; and all again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from entangled.alignment import Position
from entangled.cli.main import app
from entangled.distribution import agreement
from entangled.exchange_log import genesis, partition_path, read
from entangled.experiment_file import dumps
from entangled.log.analysis import course, divergences, mean_predictions, sightings, summarise
from entangled.log.block import Exchange
from entangled.log.diff import compare
from entangled.log.reader import blocks, exchanges, open_run
from entangled.log.verify import Fault, verify
from entangled.log_writer import Writer
from tests import logs
from tests.damage import Rows, put_together, take_apart

WHO = [logs.comings_and_goings(index) for index in range(6)]
INDEX = {"a": 0, "b": 1, "c": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.of_some(tmp_path_factory.mktemp("log") / "run")


def log(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["log", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def there(exchange: Exchange) -> dict[str, np.ndarray]:
    """Who predicted what."""
    return {"abc"[place]: p for place, p in zip(exchange.members, exchange.predictions, strict=True)}


@pytest.mark.parametrize("batch_bytes", [1, 10**6])
def test_exchanges_are_read_with_those_who_were_there(
    run: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr("entangled.exchange_log._BATCH_BYTES", batch_bytes)  # 1: a row at a time
    found = list(exchanges(open_run(run)))
    assert [tuple("abc"[i] for i in e.members) for e in found] == WHO
    rows = [row for row, _ in read(run)]
    assert [row.members for row in rows] == [members for members in WHO for _ in members]
    logged = iter(rows)
    for exchange in found:
        for peer, prediction in there(exchange).items():
            row = next(logged)
            assert (row.peer, row.prediction.tobytes()) == (peer, prediction.tobytes())


def test_the_log_is_proven_and_a_note_says_that_not_everybody_was_there(run: Path) -> None:
    notes: list[str] = []
    verdict = verify(open_run(run), notes.append)
    assert (verdict.fault, verdict.exchanges, verdict.not_by_all) == (None, 6, 4)
    assert notes == ["not every peer took part in 4 of 6 exchanges"]


def without(rows: Rows, place: int, *, told: bool) -> Rows:
    """Take a row away, and from its exchange's members as well, if `told`."""
    gone = rows[place]
    left = [row for i, row in enumerate(rows) if i != place]
    if not told:
        return left
    return [
        {**row, "members": [m for m in row["members"] if m != gone["peer"]]} if row["index"] == gone["index"] else row
        for row in left
    ]


def of(rows: Rows, index: int, members: list[str]) -> Rows:
    return [{**row, "members": members} if row["index"] == index else row for row in rows]


# The first epoch's rows are: a, b, c of index 0; a, c of index 1; c of index 2. The second's: b, c; a; a, b, c.
DAMAGE: dict[str, tuple[int, Callable[[Rows], Rows], Position, str, str]] = {
    "a row removed": (0, lambda r: without(r, 3, told=False), Position(0, 1), "a", "this one is missing"),
    "and from the members": (0, lambda r: without(r, 3, told=True), Position(0, 1), "c", "the hash chain breaks"),
    "and one alone is left": (1, lambda r: without(r, 0, told=True), Position(1, 0), "c", "λ is not 0"),
    "of three": (0, lambda r: without(r, 0, told=True), Position(0, 0), "b", "does not start from experiment.toml"),
    "the last row": (0, lambda r: without(r, 2, told=False), Position(0, 0), "c", "this one is missing"),
    "one that was alone": (1, lambda r: without(r, 2, told=False), Position(1, 1), "a", "this one is missing"),
    "a stranger": (0, lambda r: of(r, 1, ["a", "z"]), Position(0, 1), "a", "does not allow these members"),
    "another order": (0, lambda r: of(r, 1, ["c", "a"]), Position(0, 1), "a", "does not allow these members"),
    "one twice": (0, lambda r: of(r, 2, ["c", "c"]), Position(0, 2), "c", "does not allow these members"),
    "nobody": (0, lambda r: of(r, 2, []), Position(0, 2), "c", "a later row stands here"),
    "one more": (0, lambda r: of(r, 1, ["a", "b", "c"]), Position(0, 1), "a", "the hash chain breaks"),
    "told differently": (
        0,
        lambda r: [*r[:4], {**r[4], "members": ["b", "c"]}, *r[5:]],
        Position(0, 1),
        "c",
        "the members are not those of the exchange's first row",
    ),
    "λ of one alone": (1, lambda r: [*r[:2], {**r[2], "weight": 0.5}, *r[3:]], Position(1, 1), "a", "λ is not 0"),
}


def fault(run: Path) -> Fault:
    found = verify(open_run(run)).fault
    assert found is not None
    return found


@pytest.mark.parametrize("damage", DAMAGE)
def test_nobody_can_be_taken_away_or_added(tmp_path: Path, damage: str) -> None:
    epoch, change, position, peer, what = DAMAGE[damage]
    path = partition_path(logs.of_some(tmp_path), epoch)
    put_together({path: change(take_apart(tmp_path)[path])})
    found = fault(tmp_path)
    assert (found.position, found.peer) == (position, "a" if damage == "nobody" else peer)
    assert what in found.what
    assert found.expected != found.got


@pytest.mark.parametrize(("least", "position"), [(2, Position(0, 2)), (3, Position(0, 1))])
def test_fewer_members_than_the_experiment_wants_are_a_fault(tmp_path: Path, least: int, position: Position) -> None:
    found = fault(logs.of_some(tmp_path, min_peers=least))
    assert found.position == position
    assert found.expected == f"at least {least} of a, b, c, in this order"


def test_where_the_peers_wait_a_missing_one_is_a_fault(tmp_path: Path) -> None:
    settings = logs.experiment(("a", "b", "c"))
    found = fault(logs.Recording(tmp_path, settings, who=logs.comings_and_goings).finish())
    assert found.position == Position(0, 1)
    assert found.expected == "at least 3 of a, b, c, in this order"


@pytest.mark.parametrize("exchanges", range(1, 7))
def test_a_writer_goes_on_where_it_was_and_knows_who_was_there(tmp_path: Path, exchanges: int) -> None:
    recording = logs.Recording(tmp_path, logs.continuing(), who=logs.comings_and_goings)
    recording.record(exchanges)
    recording.writer.close()
    again = Writer(tmp_path, genesis(dumps(recording.settings)))
    assert (again.resumed, again.members, again.chain) == (exchanges, WHO[exchanges - 1], recording.writer.chain)


@pytest.mark.parametrize("rows", [1, 2])
def test_an_exchange_that_is_not_whole_is_dropped_by_the_next_writer(tmp_path: Path, rows: int) -> None:
    recording = logs.Recording(tmp_path, logs.continuing())
    recording.record(1)
    for row in next(iter(logs.rows(recording.settings, seed=1)))[:rows]:
        recording.writer.append(row)
    recording.writer.close()
    assert Writer(tmp_path, bytes(16)).resumed == 0  # another genesis: nothing of it is believed
    recording = logs.Recording(tmp_path / "same", logs.continuing())
    recording.record(1)
    for row in list(logs.rows(recording.settings))[1][:rows]:
        recording.writer.append(row)
    recording.writer.close()
    again = logs.Recording(tmp_path / "same", recording.settings).writer
    assert (again.resumed, again.members) == (1, ("a", "b", "c"))


def test_the_summary_counts_what_each_peer_took_part_in(run: Path) -> None:
    found = {(line.epoch, line.peer): line for line in summarise(blocks(open_run(run)), "abc")}
    for (epoch, peer), line in found.items():
        inside = [e for e in exchanges(open_run(run)) if e.position.epoch == epoch and peer in there(e)]
        assert line.exchanges == len(inside)
        together = [e for e in inside if len(e.members) > 1]
        same = [agreement(list(there(e).values()))[list(there(e)).index(peer)] * len(e.sample_ids) for e in together]
        assert line.agreement == pytest.approx(sum(same) / sum(len(e.sample_ids) for e in together), rel=1e-5)
    (b,) = [line for line in json.loads(log("summary", run, "--json")) if (line["epoch"], line["peer"]) == (0, "b")]
    assert b["exchanges"] == 1


def test_who_was_only_alone_has_no_agreement_and_who_was_never_there_nothing(tmp_path: Path) -> None:
    run = logs.Recording(tmp_path, logs.continuing("ab"), who=lambda _: ("a",)).finish()
    lines = {(s["epoch"], s["peer"]): s for s in json.loads(log("summary", run, "--json"))}
    assert lines[0, "a"]["agreement"] is None
    assert lines[0, "a"]["entropy"] > 0
    assert (lines[1, "b"]["exchanges"], lines[1, "b"]["entropy"], lines[1, "b"]["wait_ms_mean"]) == (0, None, None)
    assert log("summary", run).splitlines()[2].split()[:5] == ["0", "b", "0", "0.0000", "–"]


def test_divergence_is_of_two_or_more(run: Path) -> None:
    _, counts = divergences(blocks(open_run(run)), logs.SAMPLES)
    seen = np.zeros(logs.SAMPLES, int)
    for exchange in exchanges(open_run(run)):
        seen[exchange.sample_ids] += len(exchange.members) > 1
    assert counts.tolist() == seen.tolist()


def test_means_and_sightings_are_of_what_was_predicted(run: Path) -> None:
    found = list(exchanges(open_run(run)))
    for sample in range(logs.SAMPLES):
        by_peer: dict[str, list[Any]] = {peer: [] for peer in "abc"}
        seen = []
        for exchange in found:
            for place in np.flatnonzero(exchange.sample_ids == sample):
                seen.append((exchange.position, exchange.members))
                for peer, prediction in there(exchange).items():
                    by_peer[peer].append(prediction[place].astype(np.float64))
        assert [(s.position, s.members) for s in sightings(blocks(open_run(run)), sample)] == seen
        (means,) = mean_predictions(blocks(open_run(run)), [sample], 3, logs.CLASSES)
        for peer, mean in zip("abc", means, strict=True):
            if by_peer[peer]:
                np.testing.assert_allclose(mean, np.mean(by_peer[peer], axis=0))
            else:
                assert np.isnan(mean).all()


def test_the_course_knows_only_pairs_that_were_there(run: Path) -> None:
    found = course(blocks(open_run(run)), 3, open_run(run).layout)
    for index, members in enumerate(WHO):
        for one, i in INDEX.items():
            assert np.isnan(found.entropy[i, index]) == (one not in members)
            for other, j in INDEX.items():
                together = one in members and other in members
                assert np.isnan(found.agreement[i, j, index]) == (not together)
                assert np.isnan(found.divergence[i, j, index]) == (not together)
    assert found.weight[2] == 0


def test_commands_show_a_missing_peer_as_missing(run: Path, tmp_path: Path) -> None:
    header, *rows = log("show", run, "--epoch", 0, "--step", 1).splitlines()[1:]
    assert header.split()[2:] == [
        "a",
        "a's",
        "soft",
        "target",
        "b",
        "b's",
        "soft",
        "target",
        "c",
        "c's",
        "soft",
        "target",
    ]
    assert all(row.split()[-4:] != [] and row.count("–") == 2 for row in rows)
    (shown,) = {tuple(s["peers"]) for s in json.loads(log("show", run, "--epoch", 0, "--step", 1, "--json"))["samples"]}
    assert shown == ("a", "c")
    alone = json.loads(log("show", run, "--epoch", 0, "--step", 2, "--json"))["samples"][0]["peers"]["c"]
    assert alone["prediction"] == alone["soft_target"]
    tail = log("tail", run)
    assert "agreement –, KL –" in tail.splitlines()[2]
    line = json.loads(log("tail", run, "--json").splitlines()[4])
    assert {name: said["agreement"] for name, said in line["peers"].items()} == {"a": None}
    assert log("plot", run, tmp_path / "x.png") == f"drawn to {tmp_path / 'x.png'}\n"
    assert "–" in log("sample", run, "--id", 0)
    assert len(json.loads(log("disagreements", run, "--json"))) <= logs.SAMPLES
    query = "select index, len(members) as n from exchanges group by all order by all"
    assert json.loads(log("query", run, query, "--json")) == [
        {"index": index, "n": len(members)} for index, members in enumerate(WHO)
    ]
    log("export", run, tmp_path / "x.jsonl", "--columns", "peer,members")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["members"] for line in lines] == [list(members) for members in WHO for _ in members]


def test_diff_tells_where_others_took_part(run: Path, tmp_path: Path) -> None:
    full = open_run(logs.finished(tmp_path / "full", logs.continuing()))
    found = compare(exchanges(open_run(run)), exchanges(full), "abc", "abc")
    assert found.parting is not None
    assert (found.parting.position, found.parting.what) == (Position(0, 1), ["members"])
    assert found.parting.predictions == {"a": 0.0, "c": 0.0}
    assert compare(exchanges(open_run(run)), exchanges(open_run(run)), "abc", "abc").parting is None
