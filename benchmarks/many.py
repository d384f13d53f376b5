"""Many peers in few processes against two peers in two: exchanges × peers a second, everything on.

    python -m benchmarks.many [--peers 64] [--processes 2] [--rows 8] [--classes 10] [--rounds 5]

Clients without any ML framework publish random distributions as fast as they can; those of one process share a stream.
Beside the rates, which want a quiet machine, it prints the CPU that a peer's part in an exchange takes, which does not.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer

from benchmarks.exchange import entangled
from benchmarks.measuring import Group, in_turns, output, ratio
from entangled.experiment import Experiment, parse
from entangled.experiment_file import dumps


def described(peers: int, rows: int, **exchange: object) -> Experiment:
    """An experiment of so many peers."""
    names = [f"p{number}" for number in range(peers)]
    return parse(
        {
            "name": "benchmark",
            "epochs": 1,
            "batch_size": rows,
            "exchange": {"data": "mnist", "shuffle": "full", **exchange},
            "peers": {name: {"model": "mlp"} for name in names},
        },
        "benchmark",
    )


class Found(NamedTuple):
    """What one run took."""

    rate: float
    """Exchanges a second."""
    cpu: dict[str, float]
    """Microseconds of CPU for a peer's part in an exchange, of the `client` and the `coordinator`."""
    mib: float
    """Of memory that the coordinator took at most."""
    log_bytes: float
    """On disk for a peer's part in an exchange."""


def run(peers: int, processes: int, rows: int, classes: int, exchanges: int, /, **exchange: object) -> Found:
    """One run of so many exchanges; `exchange` goes over the defaults of that table."""
    experiment = described(peers, rows, **exchange).model_copy(update={"processes": processes})
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        source, address, run_dir = Path(folder) / "e.toml", f"unix:{folder}/c.sock", Path(folder) / "run"
        source.write_text(dumps(experiment), "utf-8")
        server = group.start("-m", "coordinator", str(source), "--listen", address, "--run-dir", str(run_dir))
        size = ["--rows", str(rows), "--classes", str(classes), "--exchanges", str(exchanges)]
        size += ["--coordinator", str(server.pid)]
        clients = [
            group.start("-m", "benchmarks.barriers", "many", address, *names, *size) for names in experiment.shares
        ]
        printed = [output(client) for client in clients]
        server.wait(60)
        log_bytes = sum(path.stat().st_size for path in (run_dir / "exchange").rglob("*") if path.is_file())
    used = [json.loads(text.splitlines()[-2]) for text in printed]
    return Found(
        min(float(text.split()[-1]) for text in printed),
        {role: median(one[role] for one in used) for role in ("client", "coordinator")},
        max(one["MiB"] for one in used),
        log_bytes / (peers * exchanges),
    )


def main(
    peers: Annotated[int, typer.Option()] = 64,
    processes: Annotated[int, typer.Option(help="Of those peers.")] = 2,
    rows: Annotated[int, typer.Option(help="Of a batch.")] = 8,
    classes: Annotated[int, typer.Option()] = 10,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 5,
    exchanges: Annotated[
        int, typer.Option(help="Of one measurement of many; of two peers, four times as many.")
    ] = 1000,
) -> None:
    """Measure in turns and print the rates, the ratio, and CPU."""
    used: list[dict[str, float]] = []

    def many() -> float:
        found = run(peers, processes, rows, classes, exchanges)
        used.append(found.cpu)
        return found.rate * peers

    contenders = {"many": many, "two": lambda: 2 * entangled(2, rows, classes, 4 * exchanges)}
    rates = in_turns(rounds, contenders)
    figures = {
        "peers": peers,
        "processes": processes,
        "rows": rows,
        "classes": classes,
        "exchanges × peers per second": {name: round(median(values), 1) for name, values in rates.items()},
        f"{peers} peers in {processes} processes : 2 peers": round(ratio(rates["many"], rates["two"]), 2),
        "µs of CPU per peer and exchange": {role: round(median(u[role] for u in used), 1) for role in used[0]},
    }
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)
