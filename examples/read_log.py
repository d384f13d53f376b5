"""Opens a run's exchange log with DuckDB, Polars and pandas: it is Parquet, and one glob finds all of it.

    python examples/read_log.py runs/x

Each of the three answers the same question, how many exchanges each peer had in each epoch, under which λ, and how long
it waited. What is needed is `pip install 'entangled[log]' polars pandas`, or any one of the three alone.
"""

from __future__ import annotations

import sys
from glob import glob

import duckdb
import numpy as np
import pandas
import polars

GLOB = "{run}/exchange/*/*.parquet"


def with_duckdb(run: str) -> list[tuple[int, str, int, float, float]]:
    """(epoch, peer, exchanges, λ, mean wait in ms), by SQL; only the columns that it names are read."""
    question = f"""
        select epoch, peer, count(*), avg(weight), avg(wait_us) / 1000
        from read_parquet('{GLOB.format(run=run)}', hive_partitioning = true, hive_types = {{'epoch': INTEGER}})
        group by epoch, peer order by epoch, peer
    """
    return duckdb.sql(question).fetchall()


def with_polars(run: str) -> list[tuple[int, str, int, float, float]]:
    """The same, lazily."""
    log = polars.scan_parquet(GLOB.format(run=run), hive_partitioning=True)
    table = log.group_by("epoch", "peer").agg(
        polars.len(), polars.col("weight").mean(), polars.col("wait_us").mean() / 1000
    )
    return table.sort("epoch", "peer").collect().rows()


def with_pandas(run: str) -> list[tuple[int, str, int, float, float]]:
    """The same, in memory."""
    log = pandas.read_parquet(sorted(glob(GLOB.format(run=run))), columns=["epoch", "peer", "weight", "wait_us"])
    groups = log.groupby(["epoch", "peer"], observed=True)
    table = groups.agg(exchanges=("wait_us", "size"), weight=("weight", "mean"), wait=("wait_us", "mean"))
    return [(int(e), str(p), int(row.exchanges), row.weight, row.wait / 1000) for (e, p), row in table.iterrows()]


def first_prediction(run: str) -> np.ndarray:
    """A prediction is a list, row by row; as an array it is `(rows, classes)`, one distribution per sample."""
    log = polars.scan_parquet(GLOB.format(run=run)).filter(polars.col("prediction").list.len() > 0)  # see exchange.log
    rows, classes, prediction = log.select("rows", "classes", "prediction").head(1).collect().row(0)
    return np.array(prediction, np.float32).reshape(rows, classes)


def main() -> None:
    """Print what the three say about a run."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/read_log.py RUN")
    (run,) = sys.argv[1:]
    for name, answer in (("DuckDB", with_duckdb), ("Polars", with_polars), ("pandas", with_pandas)):
        print(name)
        for epoch, peer, exchanges, weight, wait in answer(run):
            print(f"  epoch {epoch}  {peer:8}  {exchanges} exchanges  λ {weight:.4f}  waited {wait:.2f} ms")
    prediction = first_prediction(run)
    print(f"the first prediction: {prediction.shape[0]} samples, {prediction.shape[1]} classes")
    print(prediction[0].round(4))


if __name__ == "__main__":
    main()
