"""What share of its step a peer spends in the exchange itself, and not waiting for a slower peer.

    python -m benchmarks.waiting [--experiment mnist] [--epochs 2] [--rounds 3]

Each peer notes when `submit` and `result` begin and end. The time that it spends inside of these two is the exchange's,
less the part of it before the last of the others' predictions has reached the coordinator (`received_at` of the log, on
the same host and clock): that is waiting for a slower peer. What a peer does in that time with its own prediction,
encode it and send it, keeps nobody waiting, for however fast it were, the peer would wait as long. What is left,
encoding, sockets, threads, checks, combining, the answer's way back, is the exchange itself; its sum over all steps
after the first fifth, divided by the time of those steps, is the share. That of the peer with the largest counts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.measuring import Group
from benchmarks.timed_peer import ANSWERED, ASKED, SUBMIT, SUBMITTED, Times
from benchmarks.timed_peer import read as noted
from entangled import experiment_file
from entangled.datasets import load
from entangled.exchange_log import read
from entangled.experiment_file import dumps

SECONDS = 600


def exchanging(times: Times, others: Times) -> tuple[float, float]:
    """Seconds in the exchange itself, and of all steps, after the first fifth.

    Args:
        times: `(steps, 4)`, as `benchmarks.timed_peer` notes them.
        others: `(steps,)`, when the last prediction of somebody else was at the coordinator.

    Two steps of a second each: in the exchange for 0.3 s, of which 0.1 s are waiting for somebody else.

    >>> times = np.array([[0.0, 0.05, 0.1, 0.35], [1.0, 1.05, 1.1, 1.35]])
    >>> spent, of_all = exchanging(times, np.array([0.15, 1.15]))
    >>> round(spent, 6), round(of_all, 6)
    (0.2, 1.0)
    """
    first = len(times) // 5
    spent = np.zeros(len(times))
    for began, ended in ((times[:, SUBMIT], times[:, SUBMITTED]), (times[:, ASKED], times[:, ANSWERED])):
        spent += np.maximum(ended - np.maximum(began, others), 0)
    return float(spent[first + 1 :].sum()), float(times[-1, ANSWERED] - times[first, ANSWERED])


def shares(source: str, epochs: int) -> dict[str, dict[str, float]]:
    """Of one run, by peer: the share, milliseconds a step, and of those in the exchange itself."""
    experiment = experiment_file.load(source, [f"epochs={epochs}"])
    positions = experiment.layout(len(load(experiment.exchange.data).x)).positions
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        path, run, address = Path(folder) / "e.toml", Path(folder) / "run", f"unix:{folder}/c.sock"
        path.write_text(dumps(experiment), "utf-8")
        roles = [group.start("-m", "coordinator", str(path), "--listen", address, "--run-dir", str(run))]
        for name in experiment.peer_names:
            timed = ["-m", "benchmarks.timed_peer", f"{folder}/{name}.times", str(positions)]
            roles.append(group.start(*timed, name, "--coordinator", address, "--run-dir", str(run)))
        for role in roles:
            _, errors = role.communicate(timeout=SECONDS)
            if role.returncode:
                raise RuntimeError(errors[-2000:])
        rows = [row for row, _ in read(run)]
        arrived = {
            name: np.array([row.received_at for row in rows if row.peer == name]) / 1e6
            for name in experiment.peer_names
        }
        found: dict[str, dict[str, float]] = {}
        for name in experiment.peer_names:
            others = np.max([times for other, times in arrived.items() if other != name], axis=0)
            spent, of_all = exchanging(noted(Path(folder) / f"{name}.times"), others)
            steps = positions - positions // 5 - 1
            found[name] = {
                "share": spent / of_all,
                "ms a step": 1000 * of_all / steps,
                "ms in the exchange": 1000 * spent / steps,
            }
    return found


def main(
    experiment: Annotated[str, typer.Option(help="A shipped experiment, or a TOML file.")] = "mnist",
    epochs: Annotated[int, typer.Option()] = 2,
    rounds: Annotated[int, typer.Option(help="Runs; the medians are printed.")] = 3,
) -> None:
    """Print each peer's share, and the largest."""
    runs: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        runs.append(shares(experiment, epochs))
        print(f"round {number + 1}: {runs[-1]}", flush=True)
    peers = {
        name: {what: round(median(run[name][what] for run in runs), 4) for what in runs[0][name]} for name in runs[0]
    }
    largest = median(max(one["share"] for one in run.values()) for run in runs)
    print(json.dumps({"experiment": experiment, "peers": peers, "largest share": round(largest, 4)}))


if __name__ == "__main__":
    typer.run(main)
