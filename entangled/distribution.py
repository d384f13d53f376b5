"""Probability distributions on a batch: checks, combination, agreement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from entangled.errors import PredictionError

Probabilities = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-3
"""How far from 1 a row may sum: room for float32 and float16 softmax over many classes."""

CLIP = 1e-7
"""Probabilities below are taken as this, as Keras' `KLDivergence` does."""

STATISTICS = ("entropy", "confidence", "agreement", "kl_self_other", "kl_other_self")
"""What `statistics` gives, in this order."""


def check(probabilities: Probabilities, rows: int, classes: int) -> None:
    """Raise unless `probabilities` is `(rows, classes)`, finite, ≥ 0, and every row sums to 1 within `TOLERANCE`.

    Args:
        probabilities: float32.
        rows: samples in the batch.
        classes: number of classes.

    Raises:
        PredictionError: names the first row at fault.

    >>> check(np.array([[0.5, 0.5], [0.9, 0.2]], np.float32), 2, 2)
    Traceback (most recent call last):
    entangled.errors.PredictionError: row 1 does not sum to 1 (expected 1 ± 0.001; got 1.1)
    """
    if probabilities.shape != (rows, classes):
        raise PredictionError(
            "a prediction has the wrong shape", expected=str((rows, classes)), got=str(probabilities.shape)
        )
    # One pass each for the common, good case; NaN fails both comparisons.
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if probabilities.size == 0 or (probabilities.min() >= 0 and np.abs(sums - 1).max() <= TOLERANCE):
        return
    for row, (values, total) in enumerate(zip(probabilities, sums, strict=True)):
        if not np.isfinite(values).all():
            got = values[~np.isfinite(values)][0]
            raise PredictionError(f"row {row} is not finite", expected="probabilities", got=str(got))
        if (values < 0).any():
            raise PredictionError(f"row {row} has a negative probability", expected="≥ 0", got=str(values.min()))
        if abs(total - 1) > TOLERANCE:
            raise PredictionError(f"row {row} does not sum to 1", expected=f"1 ± {TOLERANCE}", got=f"{total:.6g}")


def soft_targets(predictions: Sequence[Probabilities]) -> list[Probabilities]:
    """For each peer, the mean of the *other* peers' probabilities.

    The sums run in the order given, in float64, so the result depends on that order alone (guarantee 3); with two peers
    each gets the other's prediction to the bit.

    Args:
        predictions: two or more `(rows, classes)` float32, in the experiment's peer order.

    Returns:
        As many `(rows, classes)` float32, in the same order.

    >>> a, b, c = (np.array([[p, 1 - p]], np.float32) for p in (0.0, 0.5, 1.0))
    >>> [t.tolist() for t in soft_targets([a, b, c])]
    [[[0.75, 0.25]], [[0.5, 0.5]], [[0.25, 0.75]]]
    """
    if len(predictions) == 2:
        return [predictions[1], predictions[0]]
    stacked = np.asarray(predictions, dtype=np.float64)
    before, after = np.zeros_like(stacked), np.zeros_like(stacked)
    np.cumsum(stacked[:-1], axis=0, out=before[1:])
    after[:-1] = np.cumsum(stacked[:0:-1], axis=0)[::-1]
    means = ((before + after) / (len(predictions) - 1)).astype(np.float32)
    return list(means)


def agreement(predictions: Sequence[Probabilities]) -> npt.NDArray[np.float64]:
    """For each peer, the mean share of samples on which its most probable class is another peer's.

    Args:
        predictions: two or more `(rows, classes)`, in peer order.

    Returns:
        `(peers,)` float64 in 0 … 1.

    >>> agreement([np.array([[0.9, 0.1]]), np.array([[0.8, 0.2]]), np.array([[0.3, 0.7]])]).tolist()
    [0.5, 0.5, 0.0]
    """
    top = np.argmax(np.asarray(predictions), axis=2)
    same = (top[:, None, :] == top[None, :, :]).mean(axis=2, dtype=np.float64)
    return (same.sum(axis=1) - 1) / (len(predictions) - 1)


def divergence(p: npt.NDArray[np.floating], q: npt.NDArray[np.floating]) -> Floats:
    """KL(p ‖ q) = Σ p log(p / q) over the last axis, both clipped to `CLIP` … 1, as Keras' `KLDivergence(p, q)`.

    Args:
        p: `(…, classes)` probabilities.
        q: as `p`.

    Returns:
        `(…)`, nats.

    >>> divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])).round(4)
    np.float64(0.1438)
    """
    p, q = (np.clip(x.astype(np.float64), CLIP, 1.0) for x in (p, q))
    return (p * np.log(p / q)).sum(axis=-1)


def entropy(p: npt.NDArray[np.floating]) -> Floats:
    """H(p) = -Σ p log p over the last axis, `(…)`, nats; 0 log 0 is 0.

    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0]
    """
    p = p.astype(np.float64)
    return np.abs((p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))


def statistics(predictions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What remains of predictions where they are not kept: a few means over each batch, for each peer.

    Args:
        predictions: `(peers, …, rows, classes)`, two or more peers, in the experiment's order.

    Returns:
        `(…, peers, 5)` float32, the last axis as `STATISTICS`: the mean entropy (nats); the mean probability of the
        most probable class; `agreement`; and the mean `divergence` from prediction to soft target, and back (nats).

    >>> certain, undecided = np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    >>> statistics(np.stack([certain, undecided])).astype(float).round(3).tolist()[0]
    [0.0, 1.0, 1.0, 0.693, 7.366]
    """
    # Every logarithm is taken once, in float32, and the sums in float64: this runs on every exchange of a run.
    logs = np.log(np.maximum(predictions, np.finfo(np.float32).tiny))
    own, own_logs = np.clip(predictions, CLIP, 1), np.clip(logs, np.log(np.float32(CLIP)), 0)
    if len(predictions) == 2:
        others, others_logs = own[::-1], own_logs[::-1]
    else:
        others = np.clip(soft_targets(list(predictions)), CLIP, 1)
        others_logs = np.log(others)
    top = predictions.argmax(axis=-1)
    same = (top[:, None] == top[None, :]).mean(axis=-1, dtype=np.float64)
    apart = own_logs - others_logs
    means = [
        np.abs((predictions * logs).sum(axis=-1, dtype=np.float64).mean(axis=-1)),
        predictions.max(axis=-1).mean(axis=-1, dtype=np.float64),
        (same.sum(axis=0) - 1) / (len(predictions) - 1),
        (own * apart).sum(axis=-1, dtype=np.float64).mean(axis=-1),
        -(others * apart).sum(axis=-1, dtype=np.float64).mean(axis=-1),
    ]
    return np.moveaxis(np.stack(means, axis=-1), 0, -2).astype(np.float32)
