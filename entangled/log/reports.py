"""What the commands answer, as plain values: printed as they are with `--json`, and the source of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from entangled.distribution import STATISTICS, soft_targets
from entangled.errors import LogError
from entangled.log.analysis import divergences, mean_predictions, most_divergent, sightings
from entangled.log.block import Exchange
from entangled.log.reader import Note, Run, blocks, ignore, with_predictions

Labels = npt.NDArray[np.int64] | None
"""By sample id; None where they are not known."""
Report = dict[str, Any]


def exchange(run: Run, found: Exchange, labels: Labels) -> Report:
    """One exchange: for every sample and member the prediction and the soft target, whole."""
    members = _members(run, found.members)
    targets = soft_targets(list(found.predictions), run.experiment.combination(members))
    return {
        "epoch": found.position.epoch,
        "step": found.position.step,
        "index": found.index,
        "weight": found.weight,
        "samples": [
            {
                "id": sample_id,
                "label": _label(labels, sample_id),
                "peers": {
                    peer: {"prediction": found.predictions[i, row].tolist(), "soft_target": targets[i][row].tolist()}
                    for i, peer in enumerate(members)
                },
            }
            for row, sample_id in enumerate(found.sample_ids.tolist())
        ],
    }


def sample(run: Run, sample_id: int, labels: Labels, note: Note) -> Report:
    """Every exchange that a sample was in, with each peer's prediction for it.

    Raises:
        LogError: the run has no such sample.
    """
    if not 0 <= sample_id < run.samples:
        raise LogError("the run has no such sample", expected=f"ids 0 … {run.samples - 1}", got=str(sample_id))
    return {
        "id": sample_id,
        "label": _label(labels, sample_id),
        "exchanges": [
            {
                "epoch": seen.position.epoch,
                "step": seen.position.step,
                "weight": seen.weight,
                "peers": _by_peer(_members(run, seen.members), seen.predictions),
            }
            for seen in sightings(with_predictions(run, blocks(run, note), note), sample_id)
        ],
    }


def disagreements(run: Run, top: int, epoch: int | None, labels: Labels, note: Note) -> list[Report]:
    """The `top` samples on which the peers differ most, with each peer's mean prediction.

    Reads the log twice: to find them, and for what was predicted for them.
    """
    epochs = None if epoch is None else [epoch]
    found, counts = divergences(with_predictions(run, blocks(run, note, epochs), note), run.samples)
    ids = most_divergent(found, top).tolist()
    again = with_predictions(run, blocks(run, ignore, epochs), ignore)
    means = mean_predictions(again, ids, len(run.peers), run.classes)
    return [
        {
            "id": i,
            "label": _label(labels, i),
            "divergence": float(found[i]),
            "exchanges": int(counts[i]),
            "peers": _by_peer(run.peers, mean),
        }
        for i, mean in zip(ids, means, strict=True)
    ]


def line(run: Run, found: Exchange) -> Report:
    """One exchange in brief: how each member agreed with the others, None if it was alone, and how long it waited."""
    measured = found.statistics
    return {
        "at": datetime.fromtimestamp(int(found.received_at.max()) / 1e6, UTC).isoformat(timespec="milliseconds"),
        "epoch": found.position.epoch,
        "step": found.position.step,
        "index": found.index,
        "weight": found.weight,
        "peers": {
            peer: {
                **dict(zip(STATISTICS, map(_known, measured[i].tolist()), strict=True)),
                "wait_ms": float(found.wait_us[i]) / 1e3,
            }
            for i, peer in enumerate(_members(run, found.members))
        },
    }


def _members(run: Run, places: Sequence[int]) -> list[str]:
    return [run.peers[place] for place in places]


def _by_peer(peers: Sequence[str], predictions: npt.NDArray[np.floating]) -> Report:
    """Without peers that predicted nothing."""
    by_peer = zip(peers, predictions, strict=True)
    return {peer: {"prediction": own.tolist()} for peer, own in by_peer if not np.isnan(own).any()}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _label(labels: Labels, sample_id: int) -> int | None:
    return None if labels is None else int(labels[sample_id])
