"""`entangled log query`, `export` and `diff` as they are typed."""

from __future__ import annotations

import csv
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from entangled.distribution import STATISTICS, prediction_digest
from entangled.exchange_log import SCHEMA, partition_path, read
from entangled.log import reader
from tests import logs
from tests.command_line import from_json, log, table
from tests.damage import put_together, take_apart


def test_query(run: Path, killed: Path) -> None:
    sql = "select epoch, peer, count(*) as n, sum(bytes) as bytes from exchanges group by all order by all"
    assert from_json("query", run, sql) == [
        {"epoch": epoch, "peer": peer, "n": 3, "bytes": 300 + 3 * place}
        for epoch in (0, 1)
        for place, peer in enumerate("ab")
    ]
    assert table("query", run, sql)[1] == {"epoch": "0", "peer": "b", "n": "3", "bytes": "303"}
    sql = 'select a."index" from exchanges a join exchanges b using ("index", peer) where peer = \'a\' order by 1'
    result = log("query", killed, sql)  # both kinds of file, twice
    assert result.stdout.split() == ["index", "0", "1", "2", "3"]
    assert "no whole batch" in result.stderr


def test_a_query_gives_every_column_as_the_log_has_it(run: Path) -> None:
    (exchange,) = list(reader.exchanges(reader.open_run(run), after=4))
    row, _ = from_json("query", run, 'select * from exchanges where "index" = 5 order by peer')
    assert list(row) == ["epoch", *SCHEMA.names]
    assert row["sample_ids"] == exchange.sample_ids.tolist()
    assert row["prediction"] == exchange.predictions[0].reshape(-1).tolist()
    assert row["received_at"] == "2023-11-14T22:13:25+00:00"
    assert len(row["chain"]) == 32
    assert "… 6 values]" in log("query", run, 'select * from exchanges where "index" = 5').stdout


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("selec 1", 'Parser Error: syntax error at or near "selec"'),
        ("select bad from exchanges", 'Binder Error: Referenced column "bad" not found in FROM clause!'),
        ("select 1; select 2", "a query must be one select"),
        ("copy exchanges to 'x.parquet'", "a query must be one select"),
        ("explain analyze copy exchanges to 'x.parquet'", "a query must be one select"),
        ("", "a query must be one select"),
    ],
)
def test_a_bad_query_is_one_line(run: Path, sql: str, said: str) -> None:
    result = log("query", run, sql)
    assert result.exit_code == 1
    assert str(result.exception).startswith(said)
    assert "\n" not in str(result.exception)


def test_query_without_duckdb_or_without_exchanges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.Recording(tmp_path)
    assert "has no exchanges yet" in str(log("query", tmp_path, "select 1").exception)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert str(log("query", tmp_path, "select 1").exception) == "duckdb is missing: pip install 'entangled[log]'"


@pytest.mark.parametrize("name", ["it's", "a[1]*", "step=3"])
def test_a_query_of_a_run_with_a_strange_name(tmp_path: Path, name: str) -> None:
    run = logs.finished(tmp_path / name)
    assert from_json("query", run, "select max(step) as last from exchanges") == [{"last": 2}]


def exported(run: Path, target: Path, *options: object) -> list[dict[str, Any]]:
    """What `export` wrote, with every value as Python has it."""
    result = log("export", run, target, *options)
    assert result.exit_code == 0, result.output
    if target.suffix == ".parquet":
        rows = pq.read_table(target).to_pylist()
        return [{k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
    if target.suffix == ".jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        with target.open(newline="") as file:
            rows = list(csv.DictReader(file))
        text = ("peer", "digest", "prediction_digest", "chain", "received_at")
        rows = [{k: v if k in text else json.loads(v) for k, v in row.items()} for row in rows]
    for row in rows:
        row.update({k: datetime.fromisoformat(row[k]) for k in ("received_at",) if k in row})
        row.update(
            {k: np.array(row[k], np.float32).tolist() for k in ("prediction", "weight", *STATISTICS) if k in row}
        )
    return rows


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_export_writes_every_row_as_it_is(run: Path, killed: Path, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"all.{ending}"
    rows = exported(run, target)
    written = [(row, link.hex()) for row, link in read(run)]
    assert len(rows) == len(written) == 12
    for row, (original, link) in zip(rows, written, strict=True):
        assert list(row) == ["epoch", *SCHEMA.names]
        assert (row["epoch"], row["step"]) == original.position
        assert (row["index"], row["peer"], row["weight"]) == (original.index, original.peer, original.weight)
        assert row["sample_ids"] == original.sample_ids.tolist()
        assert (row["digest"], row["chain"]) == (original.digest.hex(), link)
        assert (row["rows"], row["classes"]) == original.shape
        assert row["prediction_digest"] == prediction_digest(original.prediction).hex()
        assert 0 < row["confidence"] <= 1
        assert row["prediction"] == original.prediction.reshape(-1).tolist()
        assert row["received_at"].timestamp() * 1e6 == original.received_at
        assert (row["staleness"], row["wait_us"], row["bytes"]) == (0, original.wait_us, original.bytes)
    assert len(exported(killed, target)) == 8  # replaces the file
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_export_of_some_rows_and_columns(run: Path, tmp_path: Path, ending: str) -> None:
    options = ["--epoch", 1, "--peer", "b", "--columns", "peer,step,prediction"]
    rows = exported(run, tmp_path / f"some.{ending}", *options)
    assert [(r["peer"], r["step"]) for r in rows] == [("b", 0), ("b", 1), ("b", 2)]
    assert all(list(r) == ["peer", "step", "prediction"] for r in rows)
    exchanges = reader.exchanges(reader.open_run(run), epochs=[1])
    assert [r["prediction"] for r in rows] == [e.predictions[1].reshape(-1).tolist() for e in exchanges]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.xlsx"], "the file's ending must name a format (expected .csv, .parquet, .jsonl; got "),
        (["out.csv", "--columns", "step,lambda"], "got lambda)"),
        (["out.csv", "--peer", "z"], "no such peer in this run (expected a or b; got z)"),
        (["out.csv", "--epoch", "2"], "the run has no such epoch (expected 0 … 1; got 2)"),
        (["no/out.csv"], "cannot write no/out.csv: No such file or directory"),
        (["no/out.parquet"], "cannot write no/out.parquet: "),
    ],
)
def test_an_export_that_cannot_be(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = log("export", run, *arguments)
    assert result.exit_code == 1
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_a_damaged_log_leaves_what_was_there(tmp_path: Path) -> None:
    run, target = logs.finished(tmp_path / "run"), tmp_path / "out.csv"
    target.write_text("before")
    path = partition_path(run, 1)
    path.write_bytes(path.read_bytes()[:-9])
    result = log("export", run, target)
    assert str(result.exception).startswith(f"{path} cannot be read")
    assert target.read_text() == "before"
    assert "lies in the run's folder" in str(log("export", run, run / "x.csv").exception)


def test_diff_of_equal_runs(run: Path, tmp_path: Path) -> None:
    result = log("diff", run, logs.finished(tmp_path))
    assert (result.exit_code, result.stdout) == (0, "equal: 6 exchanges, to the bit\n")
    assert from_json("diff", run, tmp_path)["parting"] is None


def test_diff_of_runs_that_part(run: Path, tmp_path: Path) -> None:
    logs.finished(tmp_path)
    files = take_apart(tmp_path)
    path = partition_path(tmp_path, 1)
    rows = files[path]
    values = rows[3]["prediction"]
    rows[3]["prediction"] = [values[0] + 0.25, *values[1:]]
    put_together(files)
    result = log("diff", run, tmp_path)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "the runs part at epoch 1 step 1: predictions; a by 0; b by 0.25",
        "epoch  exchanges  different  predictions by  λ by",
        "    0          3          0               0     0",
        "    1          3          1            0.25     0",
    ]
    result = log("diff", run, tmp_path, "--json")
    assert result.exit_code == 1
    parting = json.loads(result.stdout)["parting"]
    assert (parting["position"], parting["what"]) == ([1, 1], ["predictions"])
    assert parting["predictions"] == pytest.approx({"a": 0.0, "b": 0.25})


def changed(folder: Path, **values: object) -> Path:
    return logs.finished(folder, logs.experiment(**values))


def test_diff_names_what_differs(run: Path, tmp_path: Path) -> None:
    exchange = {"data": "mnist", "weight": {"schedule": "linear", "end": 0.5}}
    result = log("diff", run, changed(tmp_path / "weight", exchange=exchange))
    first, *_, last = result.stdout.splitlines()
    assert first == "the runs part at epoch 1 step 0: λ; a by 0; b by 0"
    assert last.split() == ["1", "3", "3", "0", "0.25"]

    result = log("diff", run, changed(tmp_path / "seed", seed=1))
    first, *_, last = result.stdout.splitlines()
    assert first == "the runs part at epoch 0 step 0: sample ids"
    assert last.split() == ["1", "3", "3", "–", "0"]

    result = log("diff", run, changed(tmp_path / "peers", peers=("b", "a")))  # the same predictions, crossed over
    assert result.stdout.splitlines()[0].startswith("the runs part at epoch 0 step 0: peers, predictions; a by 0.")


def test_diff_with_a_run_that_is_not_finished(run: Path, killed: Path) -> None:
    for pair, ended in (((run, killed), "second"), ((killed, run), "first")):
        result = log("diff", *pair)
        assert result.exit_code == 1
        assert result.stdout.splitlines()[0] == f"the runs part at epoch 1 step 1: the {ended} log ends"
        assert "no whole batch" in result.stderr
