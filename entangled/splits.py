"""Ready-made splits: one labelled data set dealt out to several peers, for experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled.alignment import SampleIds
from entangled.errors import DataError


@dataclass(frozen=True)
class Hand:
    """What one peer is dealt.

    Attributes:
        samples: how many; None takes all that are left.
        classes: only samples of these; None takes any.
        alpha: of the Dirichlet distribution that the classes' shares follow; None takes them as they come.
    """

    samples: int | None = None
    classes: tuple[int, ...] | None = None
    alpha: float | None = None


def deal(labels: npt.NDArray[np.int64], hands: Sequence[Hand], seed: int, names: Sequence[str] = ()) -> list[SampleIds]:
    """Deal samples as from one shuffled deck, hand after hand, so that no sample is in two hands.

    This one rule makes the usual splits:

    - disjoint and IID: `Hand(samples=500)` for each;
    - by size: `Hand(samples=100)`, `Hand(samples=2000)`, …;
    - by classes, which may overlap: `Hand(classes=(0, 1, 2), samples=1000)`, …;
    - Dirichlet(α): `Hand(samples=500, alpha=0.1)`; each hand's shares of the classes are drawn anew (Hsu et al.,
      Measuring the effects of non-identical data distribution, 2019). Where a class runs out, the others of the hand
      give the rest.

    Args:
        labels: `(samples,)` class numbers.
        hands: in the order of dealing, which matters.
        seed: the deal is a function of the arguments alone.
        names: of the hands, for the message.

    Returns:
        The dealt samples' places in `labels` for each hand, in the deck's order.

    Raises:
        DataError: there are not enough samples left for a hand.

    >>> labels = np.array([0, 1, 2, 0, 1, 2])
    >>> deal(labels, [Hand(classes=(0, 1), samples=2), Hand(classes=(1, 2))], seed=0)
    [array([0, 4]), array([2, 1, 5])]
    """
    random = np.random.Generator(np.random.PCG64([seed, 0x5EA1]))
    deck = random.permutation(len(labels))
    dealt: list[SampleIds] = []
    for place, hand in enumerate(hands):
        fits = np.ones(len(deck), bool) if hand.classes is None else np.isin(labels[deck], hand.classes)
        candidates = deck[fits]
        samples = len(candidates) if hand.samples is None else hand.samples
        if not 0 < samples <= len(candidates):
            what = "any class" if hand.classes is None else f"classes {', '.join(map(str, hand.classes))}"
            raise DataError(
                f"there are not enough samples of {what} left for {names[place] if names else f'hand {place + 1}'}",
                expected=str(hand.samples or "at least 1"),
                got=str(len(candidates)),
            )
        if hand.alpha is None:
            taken = candidates[:samples]
        else:
            taken = _by_shares(labels, candidates, samples, hand.alpha, random)
        dealt.append(taken.astype(np.int64))
        deck = deck[~np.isin(deck, taken)]
    return dealt


def _by_shares(
    labels: npt.NDArray[np.int64], candidates: SampleIds, samples: int, alpha: float, random: np.random.Generator
) -> SampleIds:
    """So many candidates, their classes' shares drawn from Dirichlet(α), in the candidates' order."""
    classes = np.unique(labels[candidates])
    shares = random.dirichlet(np.full(len(classes), alpha))
    left = {int(c): candidates[labels[candidates] == c] for c in classes}
    taken = np.zeros(len(labels), bool)
    missing = samples
    while missing:
        rest = np.array([len(left[int(c)]) for c in classes])
        shares = np.where(rest > 0, np.maximum(shares, 1e-12), 0.0)
        wanted = np.minimum(random.multinomial(missing, shares / shares.sum()), rest)
        for c, count in zip(classes.tolist(), wanted.tolist(), strict=True):
            taken[left[c][:count]] = True
            left[c] = left[c][count:]
        missing -= int(wanted.sum())
    return candidates[taken[candidates]]
