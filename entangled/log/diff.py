"""Where two runs part, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from entangled.alignment import Position
from entangled.log.block import Exchange


@dataclass(frozen=True)
class Parting:
    """The first exchange in which two runs differ."""

    position: Position
    what: list[str]
    """What differs, in words."""
    predictions: dict[str, float]
    """The largest absolute difference of a probability, by peer; empty where it is not known: for other samples, or
    where they are not kept."""


@dataclass(frozen=True)
class EpochDifference:
    """One epoch of both runs."""

    epoch: int
    exchanges: int
    """Compared."""
    different: int
    """Of those, how many differ in anything."""
    predictions: float | None
    """The largest absolute difference of a probability, as far as it is known; None if it is nowhere."""
    unknown: int
    """How many exchanges are about the same samples with other predictions, which are not kept."""
    weight: float
    """The largest absolute difference of λ."""


@dataclass(frozen=True)
class Difference:
    """How two runs compare; they are equal if they do not part."""

    parting: Parting | None
    epochs: list[EpochDifference]


def compare(
    ours: Iterable[Exchange], theirs: Iterable[Exchange], our_peers: Sequence[str], their_peers: Sequence[str]
) -> Difference:
    """Compare two logs exchange by exchange, in order, holding one of each at a time.

    Members, predictions, sample ids and λ are compared, to the bit; not when they came and who waited. Predictions are
    compared by peer, for peers that took part in both, and only where they are about the same samples; by their
    digests, where a log does not keep them.
    """
    always = [] if list(our_peers) == list(their_peers) else ["peers"]
    parting: Parting | None = None
    epochs: list[EpochDifference] = []
    for a, b in zip_longest(ours, theirs):
        if a is None or b is None:
            for ended, longer in (("first", b), ("second", a)):
                if longer is not None and parting is None:
                    parting = Parting(longer.position, [f"the {ended} log ends"], {})
            break
        members = [our_peers[i] for i in a.members], [their_peers[i] for i in b.members]
        what, difference = _differences(a, b, *members)
        what = [*always, *what]
        if what and parting is None:
            parting = Parting(a.position, what, difference or {})
        if not epochs or epochs[-1].epoch != a.position.epoch:
            epochs.append(EpochDifference(a.position.epoch, 0, 0, None, 0, 0.0))
        epochs[-1] = _added(epochs[-1], what, difference, abs(a.weight - b.weight))
    return Difference(parting, epochs)


def _differences(
    a: Exchange, b: Exchange, ours: list[str], theirs: list[str]
) -> tuple[list[str], dict[str, float] | None]:
    """What differs in two exchanges among `ours` and `theirs`; by how much the predictions do, by peer, if known."""
    what = ["position"] if a.position != b.position else []
    if a.weight != b.weight:
        what.append("λ")
    if set(ours) != set(theirs):
        what.append("members")
    if not np.array_equal(a.sample_ids, b.sample_ids):
        return [*what, "sample ids"], None
    peers = [peer for peer in ours if peer in theirs]
    places = [ours.index(peer) for peer in peers], [theirs.index(peer) for peer in peers]
    if a.kept is None or b.kept is None:
        digests = a.prediction_digests, b.prediction_digests
        if all(digests[0][i] == digests[1][j] for i, j in zip(*places, strict=True)):
            return what, dict.fromkeys(peers, 0.0)
        return [*what, "predictions"], None
    own, others = a.kept[places[0]], b.kept[places[1]]
    if own.shape != others.shape:
        return [*what, "classes"], None
    if own.tobytes() == others.tobytes():
        return what, dict.fromkeys(peers, 0.0)
    apart = np.abs(own.astype(np.float64) - others).max(axis=(1, 2)).tolist()
    return [*what, "predictions"], dict(zip(peers, apart, strict=True))


def _added(
    sums: EpochDifference, what: list[str], difference: dict[str, float] | None, weight: float
) -> EpochDifference:
    predictions = sums.predictions
    if difference is not None:
        predictions = max([predictions or 0.0, *difference.values()])
    return replace(
        sums,
        exchanges=sums.exchanges + 1,
        different=sums.different + bool(what),
        predictions=predictions,
        unknown=sums.unknown + ("predictions" in what and difference is None),
        weight=max(sums.weight, weight),
    )
