"""One labelled data set dealt out to several peers."""

from __future__ import annotations

import numpy as np
import pytest

from entangled.errors import DataError
from entangled.splits import Hand, deal

LABELS = np.random.default_rng(0).integers(0, 10, 2000)

SPLITS = {
    "iid": [Hand(samples=300), Hand(samples=300)],
    "size": [Hand(samples=10), Hand(samples=1000), Hand()],
    "classes": [Hand(classes=(0, 1, 2, 3, 4, 5), samples=400), Hand(classes=(4, 5, 6, 7, 8, 9), samples=400)],
    "dirichlet": [Hand(samples=200, alpha=0.1) for _ in range(5)],
    "dirichlet of some classes": [Hand(samples=150, alpha=1.0, classes=(1, 2)), Hand(samples=100, alpha=1.0)],
}


@pytest.mark.parametrize("hands", SPLITS.values(), ids=SPLITS.keys())
def test_hands_are_disjoint_have_their_size_and_classes_and_follow_the_seed(hands: list[Hand]) -> None:
    dealt = deal(LABELS, hands, 3)
    together = np.concatenate(dealt)
    assert len(np.unique(together)) == len(together)
    for hand, ids in zip(hands, dealt, strict=True):
        assert ids.dtype == np.int64
        assert hand.samples is None or len(ids) == hand.samples
        assert hand.classes is None or set(LABELS[ids]) <= set(hand.classes)
    again, other = deal(LABELS, hands, 3), deal(LABELS, hands, 4)
    assert all(np.array_equal(a, b) for a, b in zip(dealt, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(dealt, other, strict=True))


def test_without_a_number_everything_that_is_left_is_dealt() -> None:
    first, rest = deal(LABELS, [Hand(classes=(7,)), Hand()], 0)
    assert np.array_equal(np.sort(first), np.flatnonzero(LABELS == 7))
    assert len(first) + len(rest) == len(LABELS)


def test_alpha_decides_how_alike_the_hands_are() -> None:
    def spread(alpha: float) -> float:
        dealt = deal(LABELS, [Hand(samples=100, alpha=alpha) for _ in range(6)], 1)
        return float(np.mean([np.bincount(LABELS[ids], minlength=10).max() for ids in dealt]))

    assert spread(0.1) > 45
    assert spread(1000.0) < 25


@pytest.mark.parametrize(
    "hands", [[Hand(samples=2001)], [Hand(), Hand()], [Hand(classes=(10,))], [Hand(samples=1999), Hand(samples=2)]]
)
def test_what_is_not_there_is_not_dealt(hands: list[Hand]) -> None:
    with pytest.raises(DataError, match="there are not enough samples"):
        deal(LABELS, hands, 0)
