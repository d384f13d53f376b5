"""`entangled log …` as it is typed: its tables, its JSON, its errors, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from entangled.cli.main import app
from entangled.errors import EntangledError
from entangled.exchange_log import partition_path
from tests import logs
from tests.damage import put_together, take_apart

RUNNER = CliRunner()


def log(*arguments: object) -> Result:
    result = RUNNER.invoke(app, ["log", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit | EntangledError):
        raise result.exception
    return result


def table(*arguments: object) -> list[dict[str, str]]:
    """A table's rows by heading; no cell of the tables in these tests has two spaces in it."""
    result = log(*arguments)
    assert result.exit_code == 0, result.output
    headings, *rows = [[c for c in line.split("  ") if c] for line in result.stdout.splitlines()]
    return [dict(zip((h.strip() for h in headings), (c.strip() for c in row), strict=True)) for row in rows]


def from_json(*arguments: object):
    result = log(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.finished(tmp_path_factory.mktemp("log") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch, in the middle of writing."""
    folder = logs.unfinished(tmp_path_factory.mktemp("log") / "killed", 5)
    (stream,) = folder.glob("exchange/*.arrow")
    stream.write_bytes(stream.read_bytes()[:-100])
    return folder


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


def test_verify(run: Path, killed: Path, tmp_path: Path) -> None:
    result = log("verify", run)
    assert (result.exit_code, result.stdout) == (0, f"{run}: 6 of 6 exchanges, complete and without fault\n")
    assert from_json("verify", run) == {"exchanges": 6, "of": 6, "finished": True, "fault": None}
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
    for command in ("summary", "verify"):
        result = log(command, tmp_path)
        assert result.exit_code == 1
        assert str(result.exception) == f"{tmp_path} is not a run's folder: it has no experiment.toml"
