"""The memory that `entangled log …` takes, for a short log and a long one.

    python -m benchmarks.log_memory [--rows 100000 --rows 2000000] [--command summary --command verify]

Each log is made up: two peers, batches of one sample of ten classes, so that rows are many and small, ten epochs. Each
command runs in a process of its own; what counts is that process's highest resident set, and how long it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from entangled import experiment_file
from entangled.alignment import batch_digest, fingerprint, sample_order
from entangled.exchange_log import Row, genesis
from entangled.log_writer import Writer
from entangled.schedule import weight_at

CLASSES, EPOCHS = 10, 10
COMMAND = [sys.executable, "-c", "from entangled.cli.main import main; main()", "log"]


def make(folder: Path, rows: int) -> Path:
    """A run's folder whose log has `rows` rows."""
    overrides = [f"epochs={EPOCHS}", "batch_size=1", "exchange.shuffle=none"]
    experiment = experiment_file.load("smoke", overrides)
    toml, layout = experiment_file.dumps(experiment), experiment.layout(rows // 2 // EPOCHS)
    folder.mkdir()
    (folder / "experiment.toml").write_text(toml, "utf-8")
    data = fingerprint(np.arange(layout.samples), CLASSES)
    description = {"run_id": "made-up", "samples": layout.samples, "classes": CLASSES, "finals": {}}
    (folder / "run.json").write_text(json.dumps({**description, "ids_digest": data.ids_digest.hex()}), "utf-8")
    log, random = Writer(folder, genesis(toml)), np.random.default_rng(0)
    order = sample_order(np.arange(layout.samples), "none", 0, 0)
    predictions = random.dirichlet(np.ones(CLASSES), (2, 1)).astype(np.float32)
    said = [((1, CLASSES), p, None, None) for p in predictions]
    for index in range(layout.positions):
        position = layout.position(index)
        ids = layout.batch(order, position.step)
        weight = float(np.float32(weight_at(experiment.exchange.weight, position, layout)))
        for peer, one in zip(experiment.peer_names, said, strict=True):
            row = position, index, peer, experiment.peer_names, weight, ids, batch_digest(position, ids), *one
            log.append(Row(*row, 0, index, 0, 40))
        if index % 1000 == 999:
            log.flush()
    log.finish_epoch()
    summary = {"experiment": "smoke", "peers": {}, "exchanges": layout.positions, "chain": log.chain.hex()}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return folder


def measure(command: str, run: Path) -> tuple[float, float]:
    """MiB of the highest resident set, and seconds."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, command, str(run)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"FAILED: entangled log {command}")
    return usage.ru_maxrss / 1024, time.monotonic() - began


def main(
    rows: Annotated[list[int] | None, typer.Option(help="Of each log [default: 100000 and 2000000].")] = None,
    command: Annotated[list[str] | None, typer.Option(help="Of `entangled log` [default: summary, verify].")] = None,
) -> None:
    """Make the logs, and measure."""
    print(f"{'rows':>10}  {'command':10}  {'MiB':>7}  {'seconds':>7}")
    for count in rows or [100_000, 2_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            run = make(Path(folder) / "run", count)
            for name in command or ["summary", "verify"]:
                memory, seconds = measure(name, run)
                print(f"{count:10}  {name:10}  {memory:7.0f}  {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
