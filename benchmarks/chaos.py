"""Kills at random for minutes, and checks that nothing changed: `make chaos`.

    python -m benchmarks.chaos [--minutes 5] [--seed 0]

A small experiment is run once undisturbed. Then it is run again and again, while the coordinator, a peer, or everything
at once is killed with SIGKILL at random moments; a run whose every process died is resumed. Every run must end. In turn

- the peers wait for each other: every exchanged prediction and final weight must equal the undisturbed run's, to the
  bit;
- they go on without whoever is away for half a second: the log must be without fault, and every peer's replay from it
  must give its every prediction and final weight, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from entangled.exchange_log import read

EXPERIMENT = ["smoke", "--set=epochs=20", "--set=exchange.data=mnist[:2000]", "--set=batch_size=16"]
CONTINUE = ["--set=exchange.on_missing=continue", "--set=exchange.missing_after=0.5"]
PEERS = ("cnn", "mlp")
ENTANGLED = [sys.executable, "-c", "from entangled.cli.main import main; main()"]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start `entangled run`."""
    return subprocess.Popen([*ENTANGLED, "run", *arguments], stdout=subprocess.DEVNULL)


def entangled(*arguments: str) -> str:
    """What a command prints; SystemExit if it fails."""
    done = subprocess.run([*ENTANGLED, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"FAILED: entangled {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def roles(run: Path) -> dict[int, str]:
    """The role processes of a run, by process id."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended just now
        if str(run) in words and "-m" in words:
            found[int(folder.name)] = words[words.index("-m") + 1]
    return found


def written(run: Path) -> int:
    """Bytes in the log."""
    total = 0
    for path in (run / "exchange").rglob("*.*"):
        with contextlib.suppress(OSError):  # it has become another just now
            total += path.stat().st_size
    return total


def disturbed(run: Path, chance: random.Random, kills: Counter[str], *settings: str) -> None:
    """Run the experiment under `settings` in `run` to its end, killing."""
    process = start(*EXPERIMENT, *settings, "--run-dir", str(run))
    while process.poll() is None:
        before, at_work = written(run), chance.random() < 0.8
        while at_work and process.poll() is None and written(run) == before:
            time.sleep(0.1)  # most kills are to find it at work; some, while it starts
        wait_until = time.monotonic() + chance.uniform(0.0, 5.0)
        while time.monotonic() < wait_until and process.poll() is None:
            time.sleep(0.02)
        victims = roles(run)
        if process.poll() is not None or not victims:
            continue
        if chance.random() < 0.15:
            kills["everything"] += 1
            process.kill()  # its processes die with it
            process.wait()
            while roles(run):
                time.sleep(0.02)
            process = start("--resume", str(run))
        else:
            victim = chance.choice(sorted(victims))
            kills[victims[victim]] += 1
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                kills[victims[victim]] -= 1
    if process.returncode != 0:
        raise SystemExit(f"FAILED: {run} ended with exit code {process.returncode}")


def compare(one: Path, other: Path) -> int:
    """The number of exchanges, all equal to the bit; SystemExit where something differs."""
    import keras

    rows = 0
    for (a, _), (b, _) in zip(read(one), read(other), strict=True):
        rows += 1
        if a.prediction.tobytes() != b.prediction.tobytes() or (a.weight, a.digest) != (b.weight, b.digest):
            raise SystemExit(f"FAILED: {other}: {a.peer} differs at {a.position}")
    for name in PEERS:
        first, second = (keras.models.load_model(run / "peers" / name / "final.keras") for run in (one, other))
        if not all(np.array_equal(v, w) for v, w in zip(first.get_weights(), second.get_weights(), strict=True)):
            raise SystemExit(f"FAILED: {other}: the final weights of {name} differ")
    return rows // len(PEERS)


def replay(run: Path, folder: Path) -> tuple[int, int]:
    """The exchanges of a run that is its own replay, to the bit, and those of them in which somebody was missing."""
    verdict = json.loads(entangled("log", "verify", str(run), "--json"))
    for name in PEERS:
        if not (run / "peers" / name / "final.keras").exists():
            continue  # it was missing to the end
        said = entangled("replay", str(run), name, "--run-dir", str(folder / f"{run.name}-{name}"))
        if said.count("to the bit") != 2:
            raise SystemExit(f"FAILED: the replay of {name} of {run}: {said}")
    return verdict["exchanges"], verdict["not_by_all"]


def main(
    minutes: Annotated[float, typer.Option(help="How long to go on beginning new runs.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the moments and the victims.")] = 0,
) -> None:
    """Kill at random, check, and print how much was survived."""
    chance, kills, found = random.Random(seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        if start(*EXPERIMENT, "--run-dir", str(undisturbed)).wait() != 0:
            raise SystemExit("FAILED: the undisturbed run")
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            run = Path(folder) / f"run{found['runs']}"
            if found["runs"] % 2 == 0:
                disturbed(run, chance, kills)
                found["exchanges_equal"] += compare(undisturbed, run)
            else:
                disturbed(run, chance, kills, *CONTINUE)
                exchanges, without = replay(run, Path(folder))
                found["exchanges_replayed"] += exchanges
                found["without_somebody"] += without
            found["runs"] += 1
            print(f"run {found['runs']}: equal to the bit; kills so far: {dict(kills)}", flush=True)
    print(json.dumps({**found, "kills": kills.total(), "by_kind": kills}))


if __name__ == "__main__":
    typer.run(main)
