"""Runs the benchmarks, one after the other, and rewrites docs/benchmarks.md with what they found: `make bench`.

    python -m benchmarks.report [--only "exchange of 2" …] [--rounds 3] [--full] [--flower-python flower-env/bin/python]

About twenty minutes on two quiet cores; `--full` takes five more. Flower is measured where there is an environment with
it: see `benchmarks.flower_barrier`. A benchmark that is left out keeps its lines in the page, with their date; so a
page can be brought up to date in parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from functools import reduce
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.measuring import ROOT, machine

PAGE, KEPT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks.json"

COMMANDS = {
    "exchange of 2 peers, 8 × 10": "benchmarks.exchange --peers 2",
    "exchange of 8 peers, 8 × 10": "benchmarks.exchange --peers 8 --only bare --only polled --only gloo",
    "exchange of 2 peers, 256 × 1000": "benchmarks.exchange --rows 256 --classes 1000 --only bare --only polled "
    "--only log-off",
    "64 peers in 2 processes": "benchmarks.many",
    "notebook, steps a second": "benchmarks.notebook",
    "waiting for the exchange itself": "benchmarks.waiting",
    "catching up after a restart": "benchmarks.catching_up",
    "coordinator 50 ms away": "benchmarks.lookahead --steps 600",
    "exchange of 2 peers, 64 × 50,257": "benchmarks.exchange --rows 64 --classes 50257 --exchanges 20 --only bare "
    "--only float16 --only sparse",
    "coordinator's memory": "benchmarks.memory --exchanges 10000 --exchanges 300000",
}
ROUNDS = ("exchange", "many", "notebook", "waiting", "catching_up", "lookahead")
FULL = {"coordinator's memory": "benchmarks.memory"}
"""What takes longer and is asked for by name."""

NOTES = {
    "notebook, steps a second": "A run of the shipped experiment, three processes, against both models in one process: "
    "the notebook's eager loop, and one fused `tf.function` with TensorFlow's own threads. Real MNIST, batch 8.",
    "waiting for the exchange itself": "Time inside of `submit` and `result`, less what is waiting for a slower peer: "
    "all until the last of the others' predictions is at the coordinator; as a share of the whole step.",
    "catching up after a restart": "The slower peer is killed at four fifths of the run and trains again from the "
    "first step, on the log's answers; that rate against the one at which the run had got there.",
    "coordinator 50 ms away": "Batch 128, CNN and MLP; the delay is a proxy's, half of it each way. `near` is a run "
    "without delay and without look-ahead, which is the notebook's semantics.",
    "exchange of 2 peers, 64 × 50,257": "A language model's vocabulary: 12.9 MB for a prediction in float32, half of "
    "it in float16; sparse publishes the 64 most probable classes of each row.",
    "coordinator's memory": "The highest resident set of the session and the log's writer at full speed, 1 × 10.",
}
"""What the figures of a section are, where its name does not say it."""


class Target(NamedTuple):
    """What a figure must be."""

    line: str
    section: str
    path: tuple[str, ...]
    """To the figure in the section's."""
    bound: float
    at_most: bool = False
    most: str = ""
    """The figure of `polled` beside it: what the same library could give."""


TWO, EIGHT, WIDE = "exchange of 2 peers, 8 × 10", "exchange of 8 peers, 8 × 10", "exchange of 2 peers, 256 × 1000"
MANY = "64 peers in 2 processes"
TARGETS = (
    Target(
        "exchange, 2 peers, 8 × 10, everything on : bare barrier on `grpc.aio`",
        TWO,
        ("entangled : bare",),
        0.85,
        most="polled : bare",
    ),
    Target("… : gloo all_gather", TWO, ("entangled : gloo",), 1.5, most="polled : gloo"),
    Target("… : Ray async actor", TWO, ("entangled : ray",), 8, most="polled : ray"),
    Target("… : Flower simulation", TWO, ("entangled : flower",), 100, most="polled : flower"),
    Target("exchange, 8 peers, 8 × 10 : bare barrier", EIGHT, ("entangled : bare",), 0.85, most="polled : bare"),
    Target("exchanges × peers per second, 64 peers in 2 processes : 2 peers", MANY, (f"{MANY} : 2 peers",), 5),
    Target("exchange, 2 peers, 256 × 1000 : bare barrier", WIDE, ("entangled : bare",), 0.85, most="log-off : bare"),
    Target("log on : log off, exchanges per second, 8 × 10", TWO, ("entangled : log-off",), 0.95),
    Target("`notebook` steps per second : the eager loop", "notebook, steps a second", ("entangled : eager",), 25),
    Target(
        "`notebook` steps per second : one fused `tf.function`", "notebook, steps a second", ("entangled : fused",), 1.3
    ),
    Target(
        "share of a step in the exchange itself, `mnist`, batch 128",
        "waiting for the exchange itself",
        ("largest share",),
        0.10,
        at_most=True,
    ),
    Target('50 ms away, `lookahead = "auto"` : near', "coordinator 50 ms away", ("far, auto : near",), 0.90),
    Target("coordinator's memory, longest run : shortest", "coordinator's memory", ("ratio",), 1.1, at_most=True),
    Target("catching up after a restart : live", "catching up after a restart", ("catching up : live",), 1.0),
)

HEAD = """# Benchmarks

`make bench` measures and rewrites this page ([report.py](../benchmarks/report.py)), which wants a quiet machine; each
script in [benchmarks/](../benchmarks) says what it compares. Contenders take turns, round by round, in one run; a ratio
is the median of the rounds' ratios, all else the median. Only ratios of one run mean something.

`entangled` is everything on: a coordinator's process, checks, digests, log, and a client process without a framework
for each peer. Two bare barriers have the same options, messages and means on a server that does no more: `bare` on
`grpc.aio` and uvloop, as one would write it, and `polled` on the layer of grpc that we use, without any thread beside
the one that works ([polled.py](../benchmarks/polled.py)). What `polled`, which does none of our work, reaches in our
place is the last column: nothing in Python on this library can do better. (At 256 × 1000 it is what we reach without
the log.) Flower is measured where `FLOWER_PYTHON` names the Python of an environment that has it
([flower_barrier.py](../benchmarks/flower_barrier.py)).
"""


def main(
    only: Annotated[list[str] | None, typer.Option(help="Only benchmarks whose name holds this.")] = None,
    rounds: Annotated[int, typer.Option(help="Of those that take turns.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="The coordinator's memory after 1,000,000 exchanges.")] = False,
    flower_python: Annotated[
        str | None, typer.Option(envvar="FLOWER_PYTHON", help="Python of an environment with Flower.")
    ] = None,
) -> None:
    """Measure, and rewrite the page."""
    if flower_python is not None:
        os.environ["FLOWER_PYTHON"] = flower_python
    known: dict[str, Any] = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    for name, command in (COMMANDS | (FULL if full else {})).items():
        if only and not any(part in name for part in only):
            continue
        module, *arguments = command.split()
        turns = ["--rounds", str(rounds)] if module.split(".")[1] in ROUNDS else []
        print(f"{name}: python -m {command}", flush=True)
        before = os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, *turns], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        known[name] = {
            "command": " ".join(["python -m", command, *turns]),
            "figures": json.loads(done.stdout.splitlines()[-1]),
            "machine": machine(),
            "load_before": round(before, 1),
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        }
        KEPT.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(known), "utf-8")


def page(known: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [HEAD, targets(known)]
    for name in COMMANDS:
        parts.append(f"## {name[0].upper()}{name[1:]}\n")
        if name in NOTES:
            parts.append(f"{NOTES[name]}\n")
        found = known.get(name)
        if found is None:
            parts.append(f"Not measured yet: `python -m {COMMANDS[name]}`.\n")
            continue
        parts.append(
            f"`{found['command']}`, {found['date']}, on {found['machine']}; the machine's load before it was "
            f"{found['load_before']}.\n"
        )
        lines = ["| | |", "|---|---|", *(f"| {key} | {shown} |" for key, shown in flat(found["figures"]))]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def targets(known: dict[str, Any]) -> str:
    """The table of what must be reached, and what was."""
    lines = ["| | must be | measured | holds | at most |", "|---|---|---|---|---|"]
    for target in TARGETS:
        figures = known.get(target.section, {}).get("figures", {})
        found: Any = reduce(lambda value, key: value.get(key, {}), target.path, figures)
        must = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        if not isinstance(found, int | float):
            lines.append(f"| {target.line} | {must} | not measured yet | | |")
            continue
        holds = found <= target.bound if target.at_most else found >= target.bound
        most = f"{figures[target.most]:.3g}" if target.most in figures else ""
        lines.append(f"| {target.line} | {must} | {found:.3g} | {'yes' if holds else '**no**'} | {most} |")
    return "\n".join(lines) + "\n"


def flat(figures: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested figures as lines."""
    lines: list[tuple[str, str]] = []
    for key, value in figures.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            lines += flat(value, f"{name}: ")
        elif isinstance(value, list):
            for number, one in enumerate(value, 1):
                lines += flat(one, f"{name} {number}: ")
        else:
            shown = (
                f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
            )
            lines.append((name, shown))
    return lines


if __name__ == "__main__":
    typer.run(main)
