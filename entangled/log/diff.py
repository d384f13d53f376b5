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

    Predictions, sample ids and λ are compared, to the bit; not when they came and who waited. Predictions are compared
    by peer, for peers that are in both runs, and only where they are about the same samples; by their digests, where a
    log does not keep them.
    """
    peers = [peer for peer in our_peers if peer in their_peers]
    places = [our_peers.index(peer) for peer in peers], [their_peers.index(peer) for peer in peers]
    always = [] if list(our_peers) == list(their_peers) else ["peers"]
    parting: Parting | None = None
    epochs: list[EpochDifference] = []
    for a, b in zip_longest(ours, theirs):
        if a is None or b is None:
            for ended, longer in (("first", b), ("second", a)):
                if longer is not None and parting is None:
                    parting = Parting(longer.position, [f"the {ended} log ends"], {})
            break
        what, difference = _differences(a, b, places)
        what = [*always, *what]
        if what and parting is None:
            by_peer = {} if difference is None else dict(zip(peers, difference, strict=True))
            parting = Parting(a.position, what, by_peer)
        if not epochs or epochs[-1].epoch != a.position.epoch:
            epochs.append(EpochDifference(a.position.epoch, 0, 0, None, 0, 0.0))
        epochs[-1] = _added(epochs[-1], what, difference, abs(a.weight - b.weight))
    return Difference(parting, epochs)


def _differences(a: Exchange, b: Exchange, places: tuple[list[int], list[int]]) -> tuple[list[str], list[float] | None]:
    """What differs in two exchanges; by how much the predictions do, peer by peer, if they can be compared."""
    what = ["position"] if a.position != b.position else []
    if a.weight != b.weight:
        what.append("λ")
    if not np.array_equal(a.sample_ids, b.sample_ids):
        return [*what, "sample ids"], None
    if a.kept is None or b.kept is None:
        if (a.prediction_digests[places[0]] == b.prediction_digests[places[1]]).all():
            return what, [0.0] * len(places[0])
        return [*what, "predictions"], None
    own, others = a.kept[places[0]], b.kept[places[1]]
    if own.shape != others.shape:
        return [*what, "classes"], None
    if own.tobytes() == others.tobytes():
        return what, [0.0] * len(own)
    return [*what, "predictions"], np.abs(own.astype(np.float64) - others).max(axis=(1, 2)).tolist()


def _added(sums: EpochDifference, what: list[str], difference: list[float] | None, weight: float) -> EpochDifference:
    predictions = sums.predictions
    if difference is not None:
        predictions = max([predictions or 0.0, *difference])
    return replace(
        sums,
        exchanges=sums.exchanges + 1,
        different=sums.different + bool(what),
        predictions=predictions,
        unknown=sums.unknown + ("predictions" in what and difference is None),
        weight=max(sums.weight, weight),
    )
