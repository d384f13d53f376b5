"""Catching up after a restart, through the coordinator's log, against training live: steps a second in one run.

    python -m benchmarks.catching_up [--experiment mnist] [--peer cnn] [--steps 450] [--rounds 3]

The peer is killed when it has done most of the run, and started again. It has no checkpoint, so that it trains again
from the first step, on the log's answers, up to where it was; the others wait. That stretch's rate, without the first
fifth of it, is compared with the rate at which the run had got there live.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measuring import Group
from benchmarks.timed_peer import ANSWERED, Times
from benchmarks.timed_peer import read as noted
from entangled import experiment_file
from entangled.experiment_file import dumps

SECONDS = 600


def rate(times: Times, until: int) -> float:
    """Steps a second up to that step, without the first fifth."""
    first = until // 5
    return (until - 1 - first) / (times[until - 1, ANSWERED] - times[first, ANSWERED])


def both(source: str, peer: str, steps: int) -> tuple[float, float]:
    """Live, and catching up."""
    loaded = experiment_file.load(source)
    data = f'exchange.data="{loaded.exchange.data}[:{steps * loaded.batch_size}]"'
    experiment = experiment_file.load(source, ["epochs=1", data, "checkpoint.seconds=100000"])
    dies = steps * 4 // 5
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        path, run, address = Path(folder) / "e.toml", Path(folder) / "run", f"unix:{folder}/c.sock"
        faults = Path(folder) / "faults"
        faults.mkdir()
        (faults / f"{peer}.before-update.{dies + 1}").touch()
        path.write_text(dumps(experiment), "utf-8")
        roles = [group.start("-m", "coordinator", str(path), "--listen", address, "--run-dir", str(run))]
        connected = ["--coordinator", address, "--run-dir", str(run)]
        roles += [group.start("-m", "peer", name, *connected) for name in experiment.peer_names if name != peer]
        timed = ["-m", "benchmarks.timed_peer"]
        first, second = Path(folder) / "first", Path(folder) / "second"
        killed = group.start(
            *timed, str(first), str(steps), peer, *connected, environment={"ENTANGLED_FAULTS": str(faults)}
        )
        killed.communicate(timeout=SECONDS)
        if any(faults.iterdir()):
            raise RuntimeError(f"{peer} was not killed")
        roles.append(group.start(*timed, str(second), str(steps), peer, *connected))
        for role in roles:
            _, errors = role.communicate(timeout=SECONDS)
            if role.returncode:
                raise RuntimeError(errors[-2000:])
        return rate(noted(first), dies), rate(noted(second), dies)


def main(
    experiment: Annotated[str, typer.Option(help="A shipped experiment, or a TOML file.")] = "mnist",
    peer: Annotated[str, typer.Option(help="Who is killed; the slowest one finds it hardest to catch up.")] = "cnn",
    steps: Annotated[int, typer.Option(help="Of the run.")] = 450,
    rounds: Annotated[int, typer.Option(help="Runs; the medians are printed.")] = 3,
) -> None:
    """Print both rates, and their ratio."""
    live: list[float] = []
    catching_up: list[float] = []
    for number in range(rounds):
        one, other = both(experiment, peer, steps)
        live.append(one)
        catching_up.append(other)
        print(f"round {number + 1}: live {one:.4g}, catching up {other:.4g}", flush=True)
    figures = {"live": round(median(live), 1), "catching up": round(median(catching_up), 1)}
    ratio = median(b / a for a, b in zip(live, catching_up, strict=True))
    result = {"experiment": experiment, "peer": peer, "steps_per_second": figures}
    print(json.dumps({**result, "catching up : live": round(ratio, 3)}))


if __name__ == "__main__":
    typer.run(main)
