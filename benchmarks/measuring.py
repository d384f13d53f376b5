"""What every benchmark does the same way: processes that print a rate, rounds in turn, medians, ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Line:
    """One line of docs/benchmarks.md."""

    what: str
    measured: str
    at_least: str
    figures: str


class Group:
    """Processes of one measurement, of which none outlives it."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start `python ARGUMENTS` in the repository's root, where its output can be read."""
        process = subprocess.Popen(
            [python, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", **(environment or {})},
        )
        self._processes.append(process)
        return process

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def rate(process: subprocess.Popen[str]) -> float:
    """The number that a process prints last, when it has ended well.

    Raises:
        RuntimeError: it has not.
    """
    return float(output(process).split()[-1])


def output(process: subprocess.Popen[str]) -> str:
    """What a process has printed, when it has ended well.

    Raises:
        RuntimeError: it has not.
    """
    printed, errors = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode != 0 or not printed.split():
        raise RuntimeError(f"{process.args}: exit code {process.returncode}\n{errors[-2000:]}")
    return printed


def in_turns(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each contender in every round, one after the other; whatever else the machine does meets all of them."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            rates[name].append(measure())
        done = ", ".join(f"{name} {values[-1]:.4g}" for name, values in rates.items())
        print(f"round {number + 1}: {done}", flush=True)
    return rates


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def machine() -> str:
    """One line about this machine and its versions."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    names = ("grpcio", "protobuf", "numpy", "pyarrow", "tensorflow-cpu", "keras", "torch", "ray")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {', '.join(versions)}"
