"""Draws what is in a log, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entangled.datasets import Dataset
from entangled.errors import DataError, EntangledError
from entangled.log.reports import Report

COLUMNS = 5


def contact_sheet(disagreements: Sequence[Report], data: Dataset, target: Path) -> None:
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
        axes.set_title(f"{one['id']}: label {data.y[one['id']]}", fontsize=9)
        axes.set_xlabel(
            "\n".join(_guesses(peer, said["prediction"]) for peer, said in one["peers"].items()), fontsize=7
        )
        axes.set_xticks([])
        axes.set_yticks([])
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
