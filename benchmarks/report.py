"""Runs the benchmarks, one after the other, and rewrites docs/benchmarks.md with what they found: `make bench`.

    python -m benchmarks.report [--only "exchange of 2" …] [--rounds 5]

A benchmark that is left out keeps its lines in the page, with their date; so a page can be brought up to date in parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from benchmarks.measuring import ROOT, machine

PAGE, KEPT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks.json"

COMMANDS = {
    "exchange of 2 peers, 8 × 10": "benchmarks.exchange --peers 2",
    "exchange of 8 peers, 8 × 10": "benchmarks.exchange --peers 8 --only bare",
    "exchange of 2 peers, 256 × 1000": "benchmarks.exchange --rows 256 --classes 1000 --only bare --only log-off",
    "notebook, steps a second": "benchmarks.notebook",
    "coordinator 50 ms away": "benchmarks.lookahead",
    "coordinator's memory": "benchmarks.memory",
}
ROUNDS = ("exchange", "notebook", "lookahead")

HEAD = """# Benchmarks

`make bench` measures and rewrites this page ([report.py](../benchmarks/report.py)), which wants a quiet machine; each
script in [benchmarks/](../benchmarks) says what it compares. Contenders take turns, round by round, in one run; a ratio
is the median of the rounds' ratios, all else the median. Only ratios of one run mean something.

`entangled` is everything on: a coordinator's process, checks, digests, log, and a client process without a framework
for each peer. `bare` is the same gRPC stack, options, messages and means on a server that does no more.
"""


def main(
    only: Annotated[list[str] | None, typer.Option(help="Only benchmarks whose name holds this.")] = None,
    rounds: Annotated[int, typer.Option(help="Of those that take turns.")] = 5,
) -> None:
    """Measure, and rewrite the page."""
    known: dict[str, Any] = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    for name, command in COMMANDS.items():
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
    parts = [HEAD]
    for name in COMMANDS:
        parts.append(f"## {name[0].upper()}{name[1:]}\n")
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
            lines.append((name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}"))
    return lines


if __name__ == "__main__":
    typer.run(main)
