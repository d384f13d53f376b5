"""`entangled log …` as it is typed: what it shows, its JSON, its errors, its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from matplotlib import image

from entangled.alignment import Position
from entangled.exchange_log import partition_path
from entangled.log import reader
from tests import logs
from tests.command_line import from_json, log, table
from tests.damage import put_together, take_apart


def test_summary(run: Path) -> None:
    rows = table("summary", run)
    assert [(r["epoch"], r["peer"], r["exchanges"], r["λ"]) for r in rows] == [
        ("0", "a", "3", "0.0000"),
        ("0", "b", "3", "0.0000"),
        ("1", "a", "3", "0.5000"),
        ("1", "b", "3", "0.5000"),
    ]
    for row, line in zip(rows, from_json("summary", run), strict=True):
        assert row["KL(self‖other)"] == f"{line['kl_self_other']:.4f}"
        assert row["agreement"] == f"{line['agreement']:.2%}"
        assert row["bytes"] == str(line["bytes"])


def guess(prediction: list[float]) -> str:
    best = max(range(len(prediction)), key=prediction.__getitem__)
    return f"{best} {prediction[best]:.1%}"


def test_show(run: Path) -> None:
    report = from_json("show", run, "--epoch", 1, "--step", 2)
    (exchange,) = list(reader.exchanges(reader.open_run(run), after=4))
    assert (report["epoch"], report["step"], report["index"], report["weight"]) == (1, 2, 5, 0.5)
    assert [s["id"] for s in report["samples"]] == exchange.sample_ids.tolist()
    assert [s["label"] for s in report["samples"]] == [i % 3 for i in exchange.sample_ids.tolist()]
    for row, sample in enumerate(report["samples"]):
        assert sample["peers"]["a"]["prediction"] == exchange.predictions[0, row].tolist()
        assert sample["peers"]["a"]["soft_target"] == exchange.predictions[1, row].tolist()
    result = log("show", run, "--epoch", 1, "--step", 2, "--top", 1)
    first, headings, *rows = result.stdout.splitlines()
    assert first == "epoch 1 step 2 (index 5), 2 samples, λ 0.5000"
    assert headings.split("  ")[0] == "sample"
    assert len(rows) == 2
    assert guess(report["samples"][0]["peers"]["b"]["prediction"]) in rows[0]


@pytest.mark.parametrize(("epoch", "step"), [(2, 0), (0, 3), (0, -1)])
def test_an_exchange_that_the_run_does_not_have(run: Path, epoch: int, step: int) -> None:
    result = log("show", run, "--epoch", epoch, "--step", step)
    assert result.exit_code == 1
    assert "the run has no such exchange (expected epochs 0 … 1, steps 0 … 2" in str(result.exception)


def test_an_exchange_that_the_log_does_not_have_yet(killed: Path) -> None:
    result = log("show", killed, "--epoch", 1, "--step", 2)
    assert str(result.exception) == "the log has no exchange at epoch 1 step 2: the run is not finished"


def test_sample(run: Path) -> None:
    report = from_json("sample", run, "--id", 7)
    assert (report["id"], report["label"]) == (7, 1)
    for seen in report["exchanges"]:
        exchange = reader.exchange_at(reader.open_run(run), Position(seen["epoch"], seen["step"]))
        row = exchange.sample_ids.tolist().index(7)
        assert [seen["peers"][p]["prediction"] for p in "ab"] == exchange.predictions[:, row].tolist()
    assert [seen["epoch"] for seen in report["exchanges"]] == [0, 1]
    result = log("sample", run, "--id", 7)
    assert result.stdout.splitlines()[0] == "sample 7, label 1"
    for line, seen in zip(result.stdout.splitlines()[2:], report["exchanges"], strict=True):
        assert all(guess(seen["peers"][p]["prediction"]) in line for p in "ab")
    assert "expected ids 0 … 9; got 10" in str(log("sample", run, "--id", 10).exception)


def test_disagreements(run: Path) -> None:
    rows, report = table("disagreements", run, "--top", 4), from_json("disagreements", run, "--top", 4)
    assert [r["sample"] for r in rows] == [str(r["id"]) for r in report]
    assert [r["divergence"] for r in report] == sorted((r["divergence"] for r in report), reverse=True)
    assert [r["exchanges"] for r in report] == [2] * 4
    (one,) = from_json("disagreements", run, "--top", 1, "--epoch", 1)
    (seen,) = [s for s in from_json("sample", run, "--id", one["id"])["exchanges"] if s["epoch"] == 1]
    for peer in "ab":
        assert one["peers"][peer]["prediction"] == pytest.approx(seen["peers"][peer]["prediction"])
    assert "expected 0 … 1; got 2" in str(log("disagreements", run, "--epoch", 2).exception)


def test_disagreements_are_drawn(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = tmp_path / "sheet.png"
    result = log("disagreements", run, "--top", 7, "--png", drawn)
    assert result.exit_code == 0, result.output
    assert image.imread(drawn).shape[0] > 100
    result = log("disagreements", run, "--png", run / "sheet.png")
    assert "lies in the run's folder" in str(result.exception)
    assert not (run / "sheet.png").exists()
    assert "cannot write" in str(log("disagreements", run, "--png", tmp_path / "no" / "x.png").exception)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = log("disagreements", run, "--png", drawn)
    assert str(result.exception) == "matplotlib is missing: pip install 'entangled[log]'"


def test_plot(run: Path, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = log("plot", run)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "drawn to run-log.png\n", "")
    assert image.imread(tmp_path / "run-log.png").shape[0] > 100
    result = log("plot", killed, "killed.png")
    assert result.exit_code == 0
    assert "the accuracy of peer a is not known here" in result.stderr
    assert (tmp_path / "killed.png").exists()
    monkeypatch.chdir(run)
    assert "lies in the run's folder" in str(log("plot", run).exception)


def test_tail(run: Path, killed: Path) -> None:
    result = log("tail", run, "-n", 2)
    first, second = result.stdout.splitlines()
    assert first.startswith("22:13:24.000  epoch 1 step 1  λ 0.5000  a: agreement ")
    assert "epoch 1 step 2" in second
    assert second.endswith("waited 1.0 ms")
    for row in table("summary", run)[-2:]:
        reports = [json.loads(line) for line in log("tail", run, "-n", 3, "--json").stdout.splitlines()]
        agreeing = sum(r["peers"][row["peer"]]["agreement"] * n for r, n in zip(reports, (4, 4, 2), strict=True)) / 10
        assert row["agreement"] == f"{agreeing:.2%}"
    assert len(log("tail", run, "--follow").stdout.splitlines()) == 6  # it is finished
    assert "no whole batch" in log("tail", killed).stderr


def test_tail_follows_a_run_from_before_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings: list[logs.Recording] = []
    script = iter(
        [
            lambda: recordings.append(logs.Recording(tmp_path)),
            lambda: recordings[0].record(2),
            lambda: recordings[0].record(2),
            lambda: recordings[0].finish(),
        ]
    )
    monkeypatch.setattr("time.sleep", lambda _: next(script)())
    result = log("tail", tmp_path, "--follow", "--json")
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == list(range(6))
    assert (result.exit_code, result.stderr) == (0, "")


def test_ctrl_c_ends_following(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    result = log("tail", killed, "--follow")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 4)


def test_labels_that_cannot_be_had_are_left_out_with_a_note(tmp_path: Path) -> None:
    run = logs.finished(tmp_path, logs.experiment(exchange={"data": "npz:nowhere.npz"}))
    result = log("sample", run, "--id", 7)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "sample 7, label not known"
    assert "note: no labels: cannot read nowhere.npz" in result.stderr
    assert {r["label"] for r in from_json("disagreements", run)} == {None}
    assert "cannot read nowhere.npz" in str(log("disagreements", run, "--png", tmp_path.parent / "x.png").exception)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("tests.logs:digits[:9]", "is not the data that the run was made with"),
        ("tests.logs:experiment", "is not ((x_train, y_train), (x_test, y_test))"),
    ],
)
def test_data_that_is_not_the_runs_gives_no_labels(tmp_path: Path, data: str, said: str) -> None:
    run = logs.finished(tmp_path, logs.experiment(exchange={"data": data}))
    result = log("sample", run, "--id", 7)
    assert result.stdout.splitlines()[0] == "sample 7, label not known"
    assert said in result.stderr


def test_verify(run: Path, killed: Path, tmp_path: Path) -> None:
    result = log("verify", run)
    assert (result.exit_code, result.stdout) == (0, f"{run}: 6 of 6 exchanges, complete and without fault\n")
    assert from_json("verify", run) == {
        "exchanges": 6,
        "of": 6,
        "finished": True,
        "without_predictions": 0,
        "fault": None,
        "not_by_all": 0,
    }
    result = log("verify", killed)
    assert (result.exit_code, result.stdout) == (0, f"{killed}: 4 of 6 exchanges, without fault\n")
    assert "cannot be proven" in result.stderr

    logs.finished(tmp_path)
    path = partition_path(tmp_path, 1)
    rows = take_apart(tmp_path)[path]
    put_together({path: [*rows[:3], {**rows[3], "weight": 0.25}, *rows[4:]]})
    result = log("verify", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"fault: {path}: epoch 1 step 1 peer b: λ is not the schedule's (expected 0.5; got 0.25)\n"
    result = log("verify", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fault"] == {
        "file": str(path),
        "position": [1, 1],
        "peer": "b",
        "what": "λ is not the schedule's",
        "expected": "0.5",
        "got": "0.25",
    }


def test_a_killed_run_is_read_to_its_last_whole_record_with_a_note(killed: Path) -> None:
    result = log("summary", killed)
    assert result.exit_code == 0
    assert [line.split()[2] for line in result.stdout.splitlines()[1:]] == ["3", "3", "1", "1"]
    (note,) = result.stderr.splitlines()
    assert note.startswith("note: ")
    assert "epoch=0001.arrow" in note


def test_no_run_is_one_error(tmp_path: Path) -> None:
    for command in (
        ["summary"],
        ["show", "--epoch", 0, "--step", 0],
        ["sample", "--id", 0],
        ["disagreements"],
        ["verify"],
    ):
        result = log(*command, tmp_path)
        assert result.exit_code == 1
        assert str(result.exception) == f"{tmp_path} is not a run's folder: it has no experiment.toml"
