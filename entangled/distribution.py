"""Probability distributions on a batch: checks, combination, agreement, and what is published of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from entangled.alignment import DIGEST_SIZE
from entangled.errors import PredictionError

Probabilities = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-3
"""How far from 1 a row may sum: room for float32 and float16 softmax over many classes."""

CLIP = 1e-7
"""Probabilities below are taken as this, as Keras' `KLDivergence` does."""

STATISTICS = ("entropy", "confidence", "agreement", "kl_self_other", "kl_other_self")
"""What `statistics` gives, in this order."""


CACHED = 64 * 1024
"""Probabilities of all peers together that are combined at once: what is computed between them stays in the cache."""

_least, _most = np.minimum.reduce, np.maximum.reduce
_LOW, _HIGH = 1 - TOLERANCE * 0.9, 1 + TOLERANCE * 0.9
"""Sums between which a row need not be looked at again in float64."""
_EXACT = np.dtype("<f4")

_FEW, _SHORT = 8 * 1024, 32
"""So many probabilities are summed sooner as a product, and so many sums are sooner compared one by one."""


@cache
def _ones(classes: int) -> Probabilities:
    return np.ones(classes, np.float32)


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
    if probabilities.size == 0:
        return
    # The common, good case; in float32, whose error is far below the tolerance. NaN fails every comparison.
    few = probabilities.size <= _FEW
    # A method of an array costs a small batch more than the arithmetic; einsum sums large rows in a third of the time
    # of a ufunc's reduction, and without the threads of a BLAS.
    if _have_no_sign(probabilities) if few else _least(probabilities, axis=None) >= 0:
        sums = probabilities.dot(_ones(classes)) if few else np.einsum("ij->i", probabilities)
        if rows <= _SHORT:
            totals = sums.tolist()
            if sum(totals) <= rows * _HIGH and min(totals) >= _LOW and max(totals) <= _HIGH:
                return
        elif _least(sums) >= _LOW and _most(sums) <= _HIGH:
            return
    sums = probabilities.sum(axis=1, dtype=np.float64)
    for row, (values, total) in enumerate(zip(probabilities, sums, strict=True)):
        if not np.isfinite(values).all():
            got = values[~np.isfinite(values)][0]
            raise PredictionError(f"row {row} is not finite", expected="probabilities", got=str(got))
        if (values < 0).any():
            raise PredictionError(f"row {row} has a negative probability", expected="≥ 0", got=str(values.min()))
        if abs(total - 1) > TOLERANCE:
            raise PredictionError(f"row {row} does not sum to 1", expected=f"1 ± {TOLERANCE}", got=f"{total:.6g}")


def _have_no_sign(values: Probabilities) -> bool:
    """Whether none is negative, or -0; without numpy's reduction, which takes four times as long for a small batch."""
    return values.dtype is _EXACT and values.tobytes()[3::4].isascii()  # a sign is the highest bit of the last byte


def check_together(several: Sequence[Probabilities], rows: int, classes: int) -> None:
    """`check` of each, in less time than one by one.

    Raises:
        PredictionError: one of them is none; it does not say which.

    >>> check_together([np.full((1, 2), 0.5, np.float32), np.ones((1, 2), np.float32)], 1, 2)
    Traceback (most recent call last):
    entangled.errors.PredictionError: row 1 does not sum to 1 (expected 1 ± 0.001; got 2)
    """
    for one in several:
        if one.shape != (rows, classes):
            check(one, rows, classes)
    check(np.concatenate(several), len(several) * rows, classes)


@dataclass(frozen=True)
class Combination:
    """How the other peers' predictions become one soft target.

    `how` says what is computed for each sample and class c from the others' probabilities p_j(c):

    - `mean`: Σ p_j(c) / n.
    - `geometric`: ∝ exp(Σ log p_j(c) / n), p clipped at `CLIP`, which is the mean of their logits.
    - `confidence`: Σ w_j p_j(c) / Σ w_j with w_j = 1 - H(p_j) / log(classes): who is undecided counts less.
    - `coverage`: ∝ the mean of p_j(c) over those that announce class c; over all where nobody does.

    Then, if asked for, `tempered` and `most_probable`. With two peers there is one other, whose prediction is the same
    to the bit for every `how`.
    """

    how: Literal["mean", "geometric", "confidence", "coverage"] = "mean"
    temperature: float = 1.0
    top_k: int | None = None
    coverage: tuple[tuple[int, ...], ...] = ()
    """For each peer, in the order of the predictions, the classes that it announces; for `coverage` alone."""


MEAN = Combination()
"""The mean of the others' probabilities."""


def soft_targets(predictions: Sequence[Probabilities], combination: Combination = MEAN) -> list[Probabilities]:
    """For each peer, the *other* peers' probabilities, combined.

    The sums run in the order given, in float64, so the result depends on that order alone (guarantee 3); with two peers
    each gets the other's prediction to the bit, unless it is tempered or cut.

    Args:
        predictions: `(…, rows, classes)` float32, in the experiment's peer order.
        combination: how.

    Returns:
        As many `(…, rows, classes)` float32, in the same order. A peer that is alone gets its own: λ is 0 for it.

    >>> a, b, c = (np.array([[p, 1 - p]], np.float32) for p in (0.0, 0.5, 1.0))
    >>> [t.tolist() for t in soft_targets([a, b, c])]
    [[[0.75, 0.25]], [[0.5, 0.5]], [[0.25, 0.75]]]
    >>> soft_targets([a, b, c], Combination("confidence"))[0].round(6).tolist()
    [[1.0, 0.0]]
    >>> soft_targets([a, b, c], Combination("coverage", coverage=((), (0,), (1,))))[0].tolist()
    [[1.0, 0.0]]
    """
    if len(predictions) == 1:
        return [predictions[0]]
    if len(predictions) == 2 and combination.temperature == 1.0 and combination.top_k is None:
        return [predictions[1], predictions[0]]
    shape = predictions[0].shape
    if combination == MEAN:  # in which no class of a row has to do with another, either
        predictions = [p.reshape(-1) for p in predictions]
    first = predictions[0]
    part = max(1, CACHED * len(first) // (len(predictions) * first.size or 1))
    if part >= len(first):
        return list(_soft_targets(predictions, combination).reshape(len(predictions), *shape))
    found: Probabilities = np.empty((len(predictions), *first.shape), np.float32)
    for begin in range(0, len(first), part):
        some = slice(begin, begin + part)
        found[:, some] = _soft_targets([p[some] for p in predictions], combination)
    return list(found.reshape(len(predictions), *shape))


def _soft_targets(predictions: Sequence[Probabilities], combination: Combination) -> Probabilities:
    """`(peers, …)` float32; no row has to do with another."""
    if len(predictions) == 2:
        combined = np.asarray([predictions[1], predictions[0]], dtype=np.float64)
    else:
        combined = _combined(np.asarray(predictions, dtype=np.float64), combination)
    if combination.temperature != 1.0:
        combined = tempered(combined, combination.temperature)
    if combination.top_k is not None:
        combined = most_probable(combined, combination.top_k)
    return combined.astype(np.float32)


def _combined(stacked: Floats, combination: Combination) -> Floats:
    """`(peers, …, classes)`: for each peer, the others' combined."""
    peers, classes = len(stacked), stacked.shape[-1]
    mean = _sums_of_others(stacked) / (peers - 1)
    match combination.how:
        case "mean":
            return mean
        case "geometric":
            logs = _sums_of_others(np.log(np.clip(stacked, CLIP, 1.0))) / (peers - 1)
            scores = np.exp(logs - logs.max(axis=-1, keepdims=True))
        case "confidence":
            # Where everybody else knows nothing, the floor makes it the mean.
            weights = np.maximum(1.0 - entropy(stacked) / np.log(classes), 1e-9)[..., None]
            scores = _sums_of_others(weights * stacked) / _sums_of_others(weights)
        case "coverage":
            announced = np.zeros((peers, *[1] * (stacked.ndim - 2), classes))
            for peer, covered in enumerate(combination.coverage):
                announced[peer, ..., list(covered)] = 1.0
            known = _sums_of_others(announced)
            scores = np.where(known > 0, _sums_of_others(announced * stacked) / np.maximum(known, 1.0), mean)
    total = scores.sum(axis=-1, keepdims=True)
    return np.where(total > 0, scores / np.where(total > 0, total, 1.0), mean)


def _sums_of_others(values: Floats) -> Floats:
    """For each place of the first axis, the sum over all the other places, in order."""
    ways: Floats = np.empty((len(values), 2, *values.shape[1:]))
    ways[:, 0], ways[:, 1] = values, values[::-1]
    for before, those in pairwise(list(ways)):  # sums from the first on and from the last on, sooner than cumsum does
        np.add(before, those, out=those)
    others = np.zeros_like(values)
    others[1:] = ways[:-1, 0]
    others[:-1] += ways[-2::-1, 1]
    others[-1] += 0.0  # nothing comes after the last one, and a sum is never -0 if one part is not
    return others


def tempered(p: npt.NDArray[np.floating], temperature: float) -> Floats:
    """p^(1 / T) / Σ p^(1 / T): what a softmax at temperature T had given. T > 1 is flatter, T < 1 sharper.

    Hinton et al., Distilling the knowledge in a neural network, 2015; with T < 1, the entropy reduction of DS-FL
    (Itahara et al. 2020).

    Args:
        p: `(…, classes)` probabilities.
        temperature: T > 0.

    Returns:
        The same shape, float64.

    >>> tempered(np.array([0.9, 0.1]), 2.0).round(6).tolist()
    [0.75, 0.25]
    """
    p = p.astype(np.float64)
    powers = (p / p.max(axis=-1, keepdims=True)) ** (1.0 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def most_probable(p: npt.NDArray[np.floating], count: int) -> Floats:
    """The `count` most probable classes alone, scaled to sum to 1; of equals, the lower class number stays.

    Args:
        p: `(…, classes)` probabilities.
        count: k ≥ 1; as many as there are classes, or more, changes nothing but the scale.

    Returns:
        The same shape, float64.

    >>> most_probable(np.array([0.2, 0.3, 0.3, 0.2]), 2).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    p = p.astype(np.float64)
    kept = np.argsort(np.argsort(-p, axis=-1, kind="stable"), axis=-1) < count
    cut = np.where(kept, p, 0.0)
    return cut / cut.sum(axis=-1, keepdims=True)


def rounded(p: npt.NDArray[np.floating], decimals: int) -> Floats:
    """Probabilities to so many decimals that sum to 1 all the same: what is left over goes to the largest remainders.

    Args:
        p: `(…, classes)` probabilities.
        decimals: at least 1; of equal remainders, the lower class number's is rounded up.

    Returns:
        The same shape, float64.

    >>> rounded(np.array([0.333, 0.333, 0.334]), 1).tolist()
    [0.3, 0.3, 0.4]
    """
    p = p.astype(np.float64)
    unit = 10**decimals
    scaled = p / p.sum(axis=-1, keepdims=True) * unit
    whole = np.floor(scaled)
    missing = np.rint(unit - whole.sum(axis=-1, keepdims=True))
    rank = np.argsort(np.argsort(whole - scaled, axis=-1, kind="stable"), axis=-1)
    return (whole + (rank < missing)) / unit


def published(
    p: Probabilities, temperature: float = 1.0, top_k: int | None = None, decimals: int | None = None
) -> Probabilities:
    """What a peer lets others see of its prediction: `tempered`, then `most_probable`, then `rounded`, as asked for.

    Args:
        p: `(rows, classes)` float32.
        temperature: 1 changes nothing.
        top_k: None keeps every class.
        decimals: None does not round.

    Returns:
        The same shape, float32; `p` itself where nothing is asked for.

    >>> published(np.array([[0.62, 0.3, 0.08]], np.float32), top_k=2, decimals=1).round(3).tolist()
    [[0.699999988079071, 0.30000001192092896, 0.0]]
    """
    if temperature == 1.0 and top_k is None and decimals is None:
        return p
    shown: Floats = p.astype(np.float64)
    if temperature != 1.0:
        shown = tempered(shown, temperature)
    if top_k is not None:
        shown = most_probable(shown, top_k)
    if decimals is not None:
        shown = rounded(shown, decimals)
    return shown.astype(np.float32)


def combined(predictions: Sequence[Probabilities], combination: Combination = MEAN) -> Probabilities:
    """All these probabilities combined: the soft target of a peer that was not there itself.

    Args:
        predictions: one or more `(rows, classes)` float32, in the experiment's peer order.
        combination: how, with the coverage of those who predicted them.

    >>> combined([np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32)]).tolist()
    [[0.75, 0.25]]
    """
    among = replace(combination, coverage=(*combination.coverage, ()))  # what it says itself does not count for it
    return soft_targets([*predictions, predictions[0]], among)[-1]


HALF_SCALE = 2.0**14
"""What a probability is multiplied with before it becomes a float16: so small ones keep their precision, too."""


def transmitted(p: Probabilities, encoding: Literal["float32", "float16", "sparse"]) -> Probabilities:
    """What arrives of a prediction that is sent in an encoding: in float16 it is rounded, else it is `p` itself.

    >>> transmitted(np.array([[0.1, 0.9]], np.float32), "float16").tolist()
    [[0.0999755859375, 0.89990234375]]
    """
    if encoding != "float16":
        return p
    return (p * np.float32(HALF_SCALE)).astype(np.float16).astype(np.float32) / np.float32(HALF_SCALE)


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


def prediction_digest(prediction: Probabilities) -> bytes:
    """BLAKE3-128 over a prediction as little-endian float32, row by row."""
    if prediction.dtype is not _EXACT:
        prediction = prediction.astype(_EXACT)
    if prediction.size <= _FEW:
        return blake3(prediction.tobytes()).digest(DIGEST_SIZE)
    data: Any = memoryview(np.ascontiguousarray(prediction)).cast("B")  # pyright: ignore[reportArgumentType]
    return blake3(data).digest(DIGEST_SIZE)


def data_digests(several: Iterable[Any]) -> list[bytes]:
    """`prediction_digest` of each, given the bytes that it is over; in less time than one by one."""
    found: list[bytes] = []
    hasher = blake3()
    for data in several:
        hasher.reset()
        hasher.update(data)
        found.append(hasher.digest(DIGEST_SIZE))
    return found


def statistics(predictions: npt.NDArray[np.float32], combination: Combination = MEAN) -> npt.NDArray[np.float32]:
    """What remains of predictions where they are not kept: a few means over each batch, for each peer.

    Args:
        predictions: `(peers, …, rows, classes)`, of the peers that took part, in the experiment's order.
        combination: how soft targets were made of them.

    Returns:
        `(…, peers, 5)` float32, the last axis as `STATISTICS`: the mean entropy (nats); the mean probability of the
        most probable class; `agreement`; and the mean `divergence` from prediction to soft target, and back (nats).
        The last three are nan for a peer that was alone.

    >>> certain, undecided = np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    >>> statistics(np.stack([certain, undecided])).astype(float).round(3).tolist()[0]
    [0.0, 1.0, 1.0, 0.693, 7.366]
    """
    # Every logarithm is taken once, in float32, and the sums in float64: this runs on every exchange of a run.
    logs = np.log(np.maximum(predictions, np.finfo(np.float32).tiny))
    own, own_logs = np.clip(predictions, CLIP, 1), np.clip(logs, np.log(np.float32(CLIP)), 0)
    if len(predictions) < 3 and combination == MEAN:
        others, others_logs = own[::-1], own_logs[::-1]
    else:
        others = np.clip(soft_targets(list(predictions), combination), CLIP, 1)
        others_logs = np.log(others)
    means = [
        np.abs((predictions * logs).sum(axis=-1, dtype=np.float64).mean(axis=-1)),
        predictions.max(axis=-1).mean(axis=-1, dtype=np.float64),
    ]
    if len(predictions) == 1:
        means += [np.full_like(means[0], np.nan)] * 3
    else:
        apart = own_logs - others_logs
        means += [
            _agreeing(predictions).mean(axis=-1, dtype=np.float64) / (len(predictions) - 1),
            (own * apart).sum(axis=-1, dtype=np.float64).mean(axis=-1),
            -(others * apart).sum(axis=-1, dtype=np.float64).mean(axis=-1),
        ]
    return np.moveaxis(np.stack(means, axis=-1), 0, -2).astype(np.float32)


def _agreeing(predictions: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """`(peers, …, rows)`: with how many others a peer agrees on a row's most probable class."""
    top = predictions.argmax(axis=-1)
    place = np.arange(top[0].size).reshape(top[0].shape) * predictions.shape[-1] + top
    return np.bincount(place.ravel())[place] - 1
