"""A coordinator far away: steps a second with and without a delay, with and without look-ahead.

    python -m benchmarks.lookahead [--milliseconds 50] [--rounds 3] [--steps 300]

The delay is a proxy's, half of it each way, between every peer and the coordinator. CNN and MLP, batch 128 of MNIST.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measuring import Group, in_turns, ratio
from entangled import experiment_file
from entangled.exchange_log import read
from entangled.experiment_file import dumps

SECONDS = 600


def steps_per_second(steps: int, delay: float, lookahead: str) -> float:
    """Of a run whose peers reach the coordinator over so many seconds of delay, there and back."""
    experiment = experiment_file.load(
        "smoke", ["epochs=1", f"exchange.data=mnist[:{steps * 128}]", f"exchange.lookahead={lookahead}"]
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        source, run, address = Path(folder) / "e.toml", Path(folder) / "run", f"unix:{folder}/c.sock"
        source.write_text(dumps(experiment), "utf-8")
        roles = [group.start("-m", "coordinator", str(source), "--listen", address, "--run-dir", str(run))]
        if delay:
            while not Path(folder, "c.sock").exists():
                time.sleep(0.05)
            proxy = group.start("-m", "benchmarks.delay", address, str(delay / 2))
            if proxy.stdout is None:
                raise RuntimeError("the proxy says nothing")
            address = f"127.0.0.1:{proxy.stdout.readline().strip()}"
        for name in experiment.peer_names:
            roles.append(group.start("-m", "peer", name, "--coordinator", address, "--run-dir", str(run)))
        for role in roles:
            _, errors = role.communicate(timeout=SECONDS)
            if role.returncode:
                raise RuntimeError(errors[-2000:])
        arrivals = [row.received_at for row, _ in read(run) if row.peer == "cnn"]
        known = json.loads((run / "run.json").read_text("utf-8"))
    print(f"delay {delay:g} s, lookahead {lookahead}: {known.get('lookahead', lookahead)}", flush=True)
    warm = len(arrivals) // 5
    return (len(arrivals) - 1 - warm) / ((arrivals[-1] - arrivals[warm]) / 1e6)


def main(
    milliseconds: Annotated[float, typer.Option(help="There and back.")] = 50.0,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    steps: Annotated[int, typer.Option(help="Of each run.")] = 300,
) -> None:
    """Measure in turns and print every rate, and what is left of the rate without a delay."""
    delay = milliseconds / 1000
    rates = in_turns(
        rounds,
        {
            "near": lambda: steps_per_second(steps, 0.0, "0"),
            "far": lambda: steps_per_second(steps, delay, "0"),
            "far, auto": lambda: steps_per_second(steps, delay, '"auto"'),
        },
    )
    figures = {name: round(median(values), 1) for name, values in rates.items()}
    left = {f"{name} : near": round(ratio(rates[name], rates["near"]), 3) for name in ("far", "far, auto")}
    print(json.dumps({"milliseconds": milliseconds, "steps_per_second": figures, **left}))


if __name__ == "__main__":
    typer.run(main)
