"""The layouts that docs/scaling.md simulates give what one coordinator gives."""

from __future__ import annotations

import numpy as np

from benchmarks.scaling import one, relays, rows_apart
from entangled.distribution import Probabilities

SIZE = 6, 4, 3, 5
"""Peers, rows, classes, exchanges."""


def stacked(targets: list[list[Probabilities]]) -> np.ndarray:
    return np.stack([np.stack(exchange) for exchange in targets])


def test_rows_that_are_dealt_to_coordinators_give_the_same_bits() -> None:
    _, _, expected = one(*SIZE)
    total, longest, found = rows_apart(2, *SIZE)
    assert stacked(found).tobytes() == stacked(expected).tobytes()
    assert 0 < longest <= total


def test_relays_give_the_same_but_for_the_order_of_the_sums() -> None:
    _, _, expected = one(*SIZE)
    _, _, found = relays(3, *SIZE)
    np.testing.assert_allclose(stacked(found), stacked(expected), atol=1e-6)
