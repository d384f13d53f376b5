"""What logged predictions give away about who learned from which samples: membership inference. Pure.

Whoever may choose or add to the public samples can ask for predictions on any sample, so the attacks are on predictions
for samples some of which a peer has learned from (members). Scores are higher the more likely a sample is a member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from entangled.distribution import CLIP, Floats
from entangled.log.block import Block

Mask = npt.NDArray[np.bool_]


def members(public: npt.NDArray[np.generic], private: npt.NDArray[np.generic]) -> Mask:
    """Which public samples are among the private ones, by contents.

    Args:
        public: `(samples, …)`.
        private: `(any number, …)`, of the same dtype.

    Returns:
        `(samples,)`.

    >>> members(np.array([[1.0], [2.0]]), np.array([[2.0], [3.0]])).tolist()
    [False, True]
    """
    known = {_digest(row) for row in private}
    return np.array([_digest(row) in known for row in public], bool)


def _digest(row: npt.NDArray[np.generic]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def last_confidences(blocks: Iterable[Block], labels: npt.NDArray[np.int64], peers: int) -> Floats:
    """What each peer last gave each sample's own label.

    Args:
        blocks: of a log, in order, with predictions.
        labels: by sample id.
        peers: how many.

    Returns:
        `(peers, samples)` probabilities; nan for samples that do not occur.
    """
    found = np.full((peers, len(labels)), np.nan)
    for block in blocks:
        for exchange in block.exchanges():
            rows = np.arange(len(exchange.sample_ids))
            for member, prediction in zip(exchange.members, exchange.predictions, strict=True):
                found[member, exchange.sample_ids] = prediction[rows, labels[exchange.sample_ids]]
    return found


def logits(confidences: Floats) -> Floats:
    """Log p / (1 - p), with p clipped at `CLIP` from both sides: near to normally distributed (Carlini et al. 2022).

    >>> logits(np.array([0.5, 1.0])).round(2).tolist()
    [0.0, 16.12]
    """
    p = np.clip(confidences, CLIP, 1 - CLIP)
    return np.log(p / (1 - p))


def likelihood_ratios(target: Floats, shadows: Floats, inside: Mask) -> Floats:
    """LiRA's score: the log-ratio of how likely a target's logit is for a member and for a non-member.

    For each sample both are normal distributions around the shadow models' means, with one variance each for all
    samples, as is best for few shadow models (Carlini et al., Membership inference attacks from first principles, 2022,
    section VI). A sample that no shadow model has learned from, or that all have, is taken to have the mean distance
    between both.

    Args:
        target: `(samples,)` logits of the model under attack.
        shadows: `(models, samples)` logits of models that were trained in the same way.
        inside: `(models, samples)`: which samples each has learned from.

    Returns:
        `(samples,)`.
    """
    mean_in, mean_out = _means(shadows, inside), _means(shadows, ~inside)
    gap = float(np.nanmean(mean_in - mean_out)) if np.isfinite(mean_in - mean_out).any() else 0.0
    mean_in = np.where(np.isfinite(mean_in), mean_in, mean_out + gap)
    mean_out = np.where(np.isfinite(mean_out), mean_out, mean_in - gap)
    variance_in = _variance(shadows - mean_in, inside)
    variance_out = _variance(shadows - mean_out, ~inside)
    return (
        (target - mean_out) ** 2 / (2 * variance_out)
        - (target - mean_in) ** 2 / (2 * variance_in)
        + 0.5 * np.log(variance_out / variance_in)
    )


def _means(values: Floats, chosen: Mask) -> Floats:
    counts = chosen.sum(axis=0)
    return np.where(counts > 0, (values * chosen).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _variance(apart: Floats, chosen: Mask) -> float:
    return max(float((apart[chosen] ** 2).mean()) if chosen.any() else 1.0, 1e-3)


def auc(inside: Sequence[float] | Floats, outside: Sequence[float] | Floats) -> float:
    """The area under the ROC curve: how often a member has a higher score than a non-member, equals counting half.

    0.5 tells nothing, 1 everything.

    >>> auc([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    a, b = np.asarray(inside, np.float64), np.sort(np.asarray(outside, np.float64))
    below, upto = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
    return float((below + upto).mean() / 2 / len(b))


def true_positives(inside: Floats, outside: Floats, share: float) -> float:
    """The share of members found at a threshold that takes at most `share` of the non-members for members.

    >>> true_positives(np.array([3.0, 1.0]), np.array([2.0, 0.0, 0.0, 0.0]), 0.01)
    0.5
    """
    allowed = int(share * len(outside))
    threshold = np.sort(outside)[::-1][allowed] if allowed < len(outside) else -np.inf
    return float((inside > threshold).mean())
