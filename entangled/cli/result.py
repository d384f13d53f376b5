"""What `entangled run` prints at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from entangled.experiment import Experiment

_COLUMNS = ("train_loss", "train_accuracy", "test_accuracy", "test_loss", "agreement")
_KINDS = ("alone", "entangled", "pooled")


def print_result(console: Console, experiment: Experiment, summary: Mapping[str, Any]) -> None:
    """Print the table of final metrics, and of the baselines if there are some."""
    table = Table()
    table.add_column("peer")
    for name in _COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for peer, values in summary["peers"].items():
        table.add_row(peer, *(_number(values.get(name), share="loss" not in name) for name in _COLUMNS))
    console.print(table)
    if experiment.baselines:
        console.print(_by_class(experiment, summary["peers"]))
    if summary["missing"]:
        console.print(f"missing at the end: {', '.join(summary['missing'])}")
    console.print(
        f"{summary['exchanges']} exchanges in {summary['wall_seconds']:.1f} s, final λ {summary['final_weight']:.4f}"
    )


def _by_class(experiment: Experiment, peers: Mapping[str, Mapping[str, float]]) -> Table:
    """Test accuracy alone, entangled and pooled, of all classes and of each."""
    caption = "Test accuracy in percent, of all classes and of each"
    if any(peer.coverage is not None for peer in experiment.peers.values()):  # shares of classes, say, name none
        caption += "; \\[in brackets]: the peer has no labels for it"
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=f"{caption}.", caption_justify="left")
    classes = max((c + 1 for values in peers.values() for c in _classes(values)), default=0)
    for name in ("peer", "", "all", *map(str, range(classes))):
        table.add_column(name, justify="right" if name else "left")
    for peer, values in peers.items():
        covered = experiment.peers[peer].coverage
        prefixes = {kind: "test_accuracy" if kind == "entangled" else f"{kind}_accuracy" for kind in _KINDS}
        present = {kind: prefix for kind, prefix in prefixes.items() if prefix in values}
        for kind, prefix in present.items():
            cells = [_cell(values.get(f"{prefix}_{c}"), covered is None or c in covered) for c in range(classes)]
            table.add_row(peer, kind, f"{100 * values[prefix]:.1f}", *cells, end_section=kind == list(present)[-1])
    return table


def _classes(values: Mapping[str, float]) -> list[int]:
    return [int(name.removeprefix("test_accuracy_")) for name in values if name.startswith("test_accuracy_")]


def _cell(value: float | None, covered: bool) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.0f}" if covered else f"\\[{100 * value:.0f}]"


def _number(value: float | None, *, share: bool) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if share else f"{value:.4f}"
