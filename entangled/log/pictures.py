"""Draws what is in a log, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError, EntangledError
from entangled.log.analysis import Course
from entangled.log.reader import Run
from entangled.log.reports import Report

COLUMNS = 5


def contact_sheet(disagreements: Sequence[Report], data: Dataset | Unlabelled, target: Path) -> None:
    """Draw samples that are images, each with its label and every peer's two best guesses.

    Args:
        disagreements: as `reports.disagreements` gives them.
        data: where the images are; `x` is `(samples, height, width)`, or with one or three channels behind.
        target: the PNG file.

    Raises:
        DataError: the samples are not images.
        EntangledError: matplotlib is missing, or the file cannot be written.
    """
    shape = data.x.shape[1:]
    if not (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))):
        raise DataError(
            "the samples are not images", expected="(height, width) or (height, width, 1 or 3)", got=str(shape)
        )
    peers = list(disagreements[0]["peers"]) if disagreements else []
    rows = max(-(-len(disagreements) // COLUMNS), 1)
    figure = _figure(2.0 * COLUMNS, (2.0 + 0.2 * len(peers)) * rows)
    for place, one in enumerate(disagreements):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.imshow(data.x[one["id"]].squeeze(), cmap="gray_r")
        known = one["label"]
        axes.set_title(str(one["id"]) if known is None else f"{one['id']}: label {known}", fontsize=9)
        axes.set_xlabel(
            "\n".join(_guesses(peer, said["prediction"]) for peer, said in one["peers"].items()), fontsize=7
        )
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, target)


def course(run: Run, found: Course, accuracies: Mapping[str, Mapping[int, float]], target: Path) -> None:
    """Draw λ, agreement, KL, entropy and accuracy over the epochs, for every peer and pair.

    Args:
        run: as opened.
        found: as `analysis.course` gives it.
        accuracies: as `reader.accuracies` gives them.
        target: the PNG file.

    Raises:
        EntangledError: matplotlib is missing, or the file cannot be written.
    """
    figure = _figure(9.0, 12.0)
    panels: list[Any] = list(figure.subplots(5, 1, sharex=True))
    weight, agreement, divergence, entropy, accuracy = panels
    weight.plot(found.epochs, found.weight, color="black")
    for i, j in combinations(range(len(run.peers)), 2):
        agreement.plot(found.epochs, found.agreement[i, j], label=f"{run.peers[i]}, {run.peers[j]}")
    for i, j in permutations(range(len(run.peers)), 2):
        divergence.plot(found.epochs, found.divergence[i, j], label=f"KL({run.peers[i]} ‖ {run.peers[j]})")
    for i, peer in enumerate(run.peers):
        entropy.plot(found.epochs, found.entropy[i], label=peer)
        values = accuracies[peer]
        accuracy.plot([epoch + 1 for epoch in values], list(values.values()), marker=".", label=peer)
    names = ("λ", "agreement", "KL, nats", "entropy, nats", "training accuracy")
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if axes is not weight:
            axes.legend(fontsize=8)
    accuracy.set_xlabel("epochs done")
    accuracy.set_xlim(0, run.layout.epochs)
    figure.suptitle(f"{run.experiment.name}: {run.folder.resolve().name}")
    _save(figure, target)


def comparison(table: Sequence[Report], target: Path) -> None:
    """Draw the rows of `entangled.comparison.rows`: a panel per metric, a line per peer, the 95 % interval as bars.

    Raises:
        EntangledError: matplotlib is missing, or the file cannot be written.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    settings = list(dict.fromkeys(row["setting"] for row in table))
    figure = _figure(max(6.0, 1.2 * len(settings)), 3.5 * len(metrics) + 1.0)
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(len(metrics), 1, place + 1)
        rows = [row for row in table if row["metric"] == metric]
        peers = list(dict.fromkeys(row["peer"] for row in rows))
        for number, peer in enumerate(peers):
            own = [row for row in rows if row["peer"] == peer]
            axes.errorbar(
                [settings.index(row["setting"]) + 0.06 * (number - (len(peers) - 1) / 2) for row in own],
                [row["mean"] for row in own],
                [row["reach"] or 0.0 for row in own],
                marker="o",
                capsize=3,
                label=peer,
            )
        axes.set_ylabel(metric)
        axes.set_xticks(range(len(settings)), settings if place == len(metrics) - 1 else [""] * len(settings))
        axes.tick_params(axis="x", rotation=20 if len(settings) > 1 else 0, labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, target)


def _guesses(peer: str, prediction: Sequence[float]) -> str:
    best = sorted(range(len(prediction)), key=lambda i: -prediction[i])[:2]
    return f"{peer}: " + ", ".join(f"{i} ({prediction[i]:.0%})" for i in best)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError:
        raise EntangledError("matplotlib is missing: pip install 'entangled[log]'") from None
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1))


def _save(figure: Any, target: Path) -> None:
    try:
        figure.savefig(target, dpi=120, format="png")
    except OSError as error:
        raise EntangledError(f"cannot write {target}: {error.strerror}") from None
