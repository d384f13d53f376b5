"""A study: one experiment under every combination of some settings, each with the same seeds, a run folder for each."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entangled import atomic, experiment_file
from entangled.comparison import Setting
from entangled.errors import EntangledError, ExperimentError, RunFailedError
from entangled.experiment import Experiment

PEER_BYTES = 700 * 1024 * 1024
"""What one peer's process may need, roughly."""

Axis = tuple[str, tuple[str, ...]]
"""A key of the experiment, and the values that it takes."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    label: str
    """Which setting: the varied keys with their values."""
    seed: int
    folder: Path
    experiment: Experiment

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / "summary.json").exists()


def axis(text: str) -> Axis:
    """Read `KEY=VALUE,VALUE,…`; commas within brackets, braces and quotes separate nothing.

    Raises:
        ExperimentError: it is nothing like that.

    >>> axis("exchange.weight.end=0,0.5")
    ('exchange.weight.end', ('0', '0.5'))
    >>> axis("exchange.shuffle={buffer=100},full")[1]
    ('{buffer=100}', 'full')
    """
    key, equals, rest = text.partition("=")
    values, depth, quote = [""], 0, ""
    for letter in rest:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    if not equals or not key.strip() or not all(v.strip() for v in values):
        raise ExperimentError("cannot understand --vary", expected="KEY=VALUE,VALUE,…", got=text)
    return key.strip(), tuple(v.strip() for v in values)


def plan(name: str, overrides: Sequence[str], axes: Sequence[Axis], seeds: int, folder: Path) -> list[Cell]:
    """Every run of a study, seed after seed, so that what is cut off early still has whole pairs.

    Args:
        name: of the experiment, as of `experiment_file.load`.
        overrides: what all runs have in common, beside the file.
        axes: what is varied.
        seeds: how many, from the experiment's own on.
        folder: the study's.

    Raises:
        ExperimentError: a combination is no valid experiment.
    """
    first = experiment_file.load(name, overrides).seed
    combinations = [
        [f"{key}={value}" for (key, _), value in zip(axes, values, strict=True)]
        for values in itertools.product(*(values for _, values in axes))
    ]
    return [
        Cell(
            " ".join(settings) or "as it is",
            seed,
            folder / _folder_name(settings) / f"seed={seed}",
            experiment_file.load(name, [*overrides, *settings, f"seed={seed}"]),
        )
        for seed in range(first, first + seeds)
        for settings in combinations
    ]


def _folder_name(settings: list[str]) -> str:
    """One for each combination; where not all of it can be in a name, a digest tells it from others that look alike."""
    text = ",".join(settings)
    name = re.sub(r"[^\w.=,+-]+", "_", text).strip("_")[:110]
    if not text:
        return "as-it-is"
    return name if name == text else f"{name}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def jobs(experiment: Experiment) -> int:
    """How many runs this machine holds at once: a CPU and some memory for each peer."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    peers = len(experiment.peers)
    return max(1, min(cpus // peers, int(memory * 0.8) // (PEER_BYTES * peers)))


def perform(cells: Sequence[Cell], at_once: int, say: Callable[[str], None], on: str | None = None) -> None:
    """Do what is not done: begin runs, and go on with those that were cut off.

    Args:
        cells: all of the study's.
        at_once: how many runs.
        say: is told of each run that has ended.
        on: the Ray cluster on which they run, as of `entangled run --on`; None is this machine.

    Raises:
        EntangledError: a run's folder is of another experiment than this study's.
        RunFailedError: some runs failed; the others have been done all the same.
    """
    for cell in cells:
        _check(cell)
    failed: list[str] = []
    waiting = [cell for cell in cells if not cell.finished]
    with ThreadPoolExecutor(at_once) as pool:
        for cell, why in zip(waiting, pool.map(lambda cell: _run(cell, on), waiting), strict=True):
            left = sum(not c.finished for c in cells)
            say(f"{cell.folder}: {why or 'done'}, {left} of {len(cells)} runs left")
            if why:
                failed.append(f"{cell.folder}: {why}")
    if failed:
        raise RunFailedError(f"{len(failed)} of {len(cells)} runs failed; the first: {failed[0]}")


def _check(cell: Cell) -> None:
    written = cell.folder / "experiment.toml"
    if written.exists() and written.read_text("utf-8") != experiment_file.dumps(cell.experiment):
        raise EntangledError(f"{cell.folder} holds a run of another experiment: choose another --run-dir")


def _run(cell: Cell, on: str | None) -> str:
    """Run one cell in a process of its own; why it failed, or nothing."""
    command = [sys.executable, "-c", "from entangled.cli.main import main; main()", "run"]
    if (cell.folder / "experiment.toml").exists():
        command += ["--resume", str(cell.folder)]
    else:
        if cell.folder.exists():  # cut off before there was anything to go on with
            shutil.rmtree(cell.folder)
        source = cell.folder.with_suffix(".toml")
        source.parent.mkdir(parents=True, exist_ok=True)
        text = experiment_file.dumps(cell.experiment) + experiment_file.dumps_placement(cell.experiment)
        atomic.write(source, lambda file: file.write_text(text, "utf-8"))
        command += [str(source), "--run-dir", str(cell.folder)]
    if on is not None:
        command += ["--on", on]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}"


def settings(runs: Sequence[tuple[str, int, Path]]) -> list[Setting]:
    """Finished runs, by label, in the order in which labels come; each is (label, seed, folder)."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for label, seed, folder in runs:
        found.setdefault(label, []).append((seed, folder))
    return [
        Setting(label, _together([f for _, f in seeded]), {seed: _final(folder) for seed, folder in seeded})
        for label, seeded in found.items()
    ]


def _together(folders: list[Path]) -> str:
    parents = {folder.parent for folder in folders}
    if len(folders) == 1 or len(parents) > 1:
        return " ".join(map(str, folders))
    return f"{folders[0].parent}/{{{','.join(folder.name for folder in folders)}}}"


def _final(folder: Path) -> dict[str, dict[str, float]]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return summary["peers"]


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """For each experiment, what is different in it from one of the others, name and seed aside; "" if nothing is."""
    flat = [dict(_flat(e.model_dump(mode="json", exclude={"name", "description", "seed"}))) for e in experiments]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({repr(f.get(k)) for f in flat}) > 1]
    return [" ".join(f"{k}={f[k]}" for k in keys if f.get(k) is not None) for f in flat]


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
