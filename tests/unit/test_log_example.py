"""The log's Parquet opens in DuckDB, Polars and pandas by one glob, as the example shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from entangled.exchange_log import read
from examples import read_log


@pytest.mark.parametrize("library", [read_log.with_duckdb, read_log.with_polars, read_log.with_pandas])
def test_one_glob_opens_the_log(run: Path, library) -> None:
    expected = [(0, "a", 3, 0.0, 0.0), (0, "b", 3, 0.0, 1.0), (1, "a", 3, 0.5, 0.0), (1, "b", 3, 0.5, 1.0)]
    assert library(str(run)) == expected


def test_the_example_as_a_script(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, _), *_ = read(run)
    assert read_log.first_prediction(str(run)).tolist() == first.prediction.tolist()
    monkeypatch.setattr(sys, "argv", ["read_log.py", str(run)])
    read_log.main()
    assert capsys.readouterr().out.count("epoch 1  b         3 exchanges  λ 0.5000  waited 1.00 ms") == 3
