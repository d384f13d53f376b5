"""What the commands say of a log that does not keep every prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entangled.alignment import Position
from entangled.log import reader
from entangled.log.reader import exchange_at, exchanges, open_run
from peer.replay import app
from tests import logs
from tests.command_line import from_json, log

REPLAY = CliRunner()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.finished(tmp_path_factory.mktemp("log") / "full")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the predictions of the exchanges 0 and 4: one in each epoch."""
    return logs.finished(tmp_path_factory.mktemp("log") / "sampled", logs.keeping("sampled", log_every=4))


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.finished(tmp_path_factory.mktemp("log") / "statistics", logs.keeping("statistics"))


@pytest.fixture(params=["sampled", "statistics"])
def thinned(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_the_reader_gives_whole_exchanges_with_predictions_or_without(full: Path, sampled: Path) -> None:
    for whole, found in zip(exchanges(open_run(full)), exchanges(open_run(sampled)), strict=True):
        assert (found.kept is not None) == (found.index in (0, 4))
        if found.kept is not None:
            assert found.predictions.tobytes() == whole.predictions.tobytes()
        assert found.sample_ids.tolist() == whole.sample_ids.tolist()
        assert found.statistics.tobytes() == whole.statistics.tobytes()
        assert found.prediction_digests == whole.prediction_digests
    assert [e.index for e in exchanges(open_run(sampled), after=3)] == [4, 5]


def test_summary_and_tail_need_no_predictions(full: Path, thinned: Path) -> None:
    assert log("summary", thinned).stdout == log("summary", full).stdout
    assert from_json("summary", thinned) == from_json("summary", full)
    assert log("tail", thinned).stdout == log("tail", full).stdout
    assert log("summary", thinned).stderr == log("tail", thinned).stderr == ""


def test_verify_says_in_one_line_what_it_could_not_prove(sampled: Path, statistics: Path) -> None:
    for run, without, mode in ((sampled, 4, "sampled, exchange.log_every = 4"), (statistics, 6, "statistics")):
        result = log("verify", run)
        assert (result.exit_code, result.stdout) == (0, f"{run}: 6 of 6 exchanges, complete and without fault\n")
        assert result.stderr == (
            f"note: the predictions of {without} of 6 exchanges are not kept (exchange.log = {mode}): that they were "
            "distributions, and have the digests and statistics in the log, cannot be proven\n"
        )
        assert from_json("verify", run)["without_predictions"] == without


def test_show_of_an_exchange_whose_predictions_are_not_kept(full: Path, sampled: Path) -> None:
    assert log("show", sampled, "--epoch", 1, "--step", 1).stdout == log("show", full, "--epoch", 1, "--step", 1).stdout
    result = log("show", sampled, "--epoch", 1, "--step", 2)
    assert result.exit_code == 1
    assert str(result.exception) == "the log does not keep the predictions of epoch 1 step 2"


def test_what_looks_at_predictions_says_which_it_saw(sampled: Path, tmp_path: Path) -> None:
    note = "note: only 2 of 6 exchanges are looked at: the others' predictions are not kept (exchange.log = sampled)\n"
    ids = [exchange_at(open_run(sampled), Position(*place)).sample_ids.tolist() for place in ((0, 0), (1, 1))]
    result = log("disagreements", sampled)
    assert (result.exit_code, result.stderr) == (0, note)
    assert sorted(int(line.split()[0]) for line in result.stdout.splitlines()[1:]) == sorted({*ids[0], *ids[1]})
    seen = log("sample", sampled, "--id", ids[0][0])
    assert (seen.exit_code, seen.stderr) == (0, note)
    assert len(seen.stdout.splitlines()) == 2 + sum(ids[0][0] in batch for batch in ids)
    drawn = log("plot", sampled, tmp_path / "x.png")
    assert (drawn.exit_code, drawn.stderr) == (0, note)


@pytest.mark.parametrize("command", [["sample", "--id", 1], ["disagreements"], ["plot"]])
def test_what_needs_predictions_says_that_there_are_none(
    statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = log(command[0], statistics, *command[1:])
    assert result.exit_code == 1
    assert str(result.exception).startswith("the log keeps no predictions (exchange.log = statistics)")
    assert list(tmp_path.iterdir()) == []


def test_diff_compares_digests_where_predictions_are_not_kept(full: Path, thinned: Path, tmp_path: Path) -> None:
    result = log("diff", full, thinned)
    assert (result.exit_code, result.stdout) == (0, "equal: 6 exchanges, to the bit\n")
    other = logs.finished(tmp_path, seed=1)
    result = log("diff", thinned, other)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith("the runs part at epoch 0 step 0: predictions")
    assert [row["predictions by"] for row in parted(result.stdout)] == ["not kept", "not kept"]
    assert [row["different"] for row in parted(result.stdout)] == ["3", "3"]


def parted(text: str) -> list[dict[str, str]]:
    headings, *rows = [[c.strip() for c in line.split("  ") if c] for line in text.splitlines()[1:]]
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_export_leaves_them_empty_and_says_so(thinned: Path, tmp_path: Path) -> None:
    without = sum(2 for exchange in exchanges(open_run(thinned)) if exchange.kept is None)
    target = tmp_path / "x.jsonl"
    result = log("export", thinned, target)
    assert result.stderr == f"note: the predictions of {without} of 12 rows are not kept, and empty in {target}\n"
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert sum(row["prediction"] == [] for row in rows) == without
    assert log("export", thinned, target, "--columns", "step,entropy").stderr == ""


def test_query_sees_the_statistics(full: Path, thinned: Path) -> None:
    sql = 'select "index", peer, entropy, kl_self_other, prediction_digest from exchanges order by all'
    assert from_json("query", thinned, sql) == from_json("query", full, sql)


def test_replay_refuses_and_names_the_first_that_is_missing(sampled: Path, statistics: Path, tmp_path: Path) -> None:
    for run, place, mode in ((sampled, "epoch 0 step 1", "sampled"), (statistics, "epoch 0 step 0", "statistics")):
        result = REPLAY.invoke(app, [str(run), "a", "--run-dir", str(tmp_path / "again")])
        assert result.exit_code == 1
        assert f"{run} cannot be replayed: the predictions of {place} are not kept (exchange.log = {mode})" in (
            result.stderr
        )
        assert "a run with exchange.log = full can" in result.stderr
        assert not (tmp_path / "again").exists()


def test_a_block_is_all_kept_or_not_at_all(sampled: Path) -> None:
    kept = [(block.indexes.tolist(), block.kept is not None) for block in reader.blocks(open_run(sampled))]
    assert kept == [([0], True), ([1], False), ([2], False), ([3], False), ([4], True), ([5], False)]
