"""Probability distributions on a batch: what is refused (guarantee 4) and how soft targets are made (guarantee 3)."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from entangled.distribution import (
    STATISTICS,
    TOLERANCE,
    agreement,
    check,
    divergence,
    entropy,
    soft_targets,
    statistics,
)
from entangled.errors import PredictionError


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def dirichlet(seed: int, peers: int, batch: int = 5, classes: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).dirichlet(np.ones(classes), (peers, batch)).astype(np.float32))


def test_distributions_pass() -> None:
    check(rows([0.0, 1.0], [0.25, 0.75], [0.5 + TOLERANCE * 0.9, 0.5]), 3, 2)
    check(rows([0.5 - TOLERANCE * 0.9, 0.5]), 1, 2)
    check(rows([-0.0, 1.0]), 1, 2)


@pytest.mark.parametrize(("place", "count"), [(0, 3), (1, 3), (2, 3), (39, 40), (4999, 5000)])  # small, and larger
@pytest.mark.parametrize(
    ("bad", "what", "got"),
    [
        ([np.nan, 0.5], "is not finite", "nan"),
        ([np.inf, 0.5], "is not finite", "inf"),
        ([-np.inf, 0.5], "is not finite", "-inf"),
        ([-0.25, 1.25], "has a negative probability", "-0.25"),
        ([0.25, 0.5], "does not sum to 1", "0.75"),
        ([0.5 + TOLERANCE * 1.1, 0.5], "does not sum to 1", "1.0011"),
        ([0.5 - TOLERANCE * 1.1, 0.5], "does not sum to 1", "0.9989"),
        ([0.0, 0.0], "does not sum to 1", "0"),
    ],
)
def test_guarantee_4_what_is_no_distribution_is_refused_with_its_row(
    bad: list[float], what: str, got: str, place: int, count: int
) -> None:
    batch = np.full((count, 2), 0.5, np.float32)
    batch[place] = bad
    with pytest.raises(PredictionError, match=f"row {place} {what}") as refused:
        check(batch, count, 2)
    assert refused.value.expected
    assert got in refused.value.got


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (3, 3), (3, 1), (3, 0)])
def test_guarantee_4_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(PredictionError, match="shape") as refused:
        check(np.full(shape, 0.5, np.float32), 3, 2)
    assert (refused.value.expected, refused.value.got) == ("(3, 2)", str(shape))


def test_two_peers_get_each_others_prediction_to_the_bit() -> None:
    a, b = dirichlet(0, 2)
    for_a, for_b = soft_targets([a, b])
    assert for_a.tobytes() == b.tobytes()
    assert for_b.tobytes() == a.tobytes()


@pytest.mark.parametrize("peers", [3, 4, 7])
def test_more_peers_get_the_mean_of_the_others(peers: int) -> None:
    predictions = dirichlet(peers, peers)
    for i, target in enumerate(soft_targets(predictions)):
        others = [p for j, p in enumerate(predictions) if j != i]
        assert target.dtype == np.float32
        np.testing.assert_allclose(target, np.mean(others, axis=0), atol=1e-7)
        check(target, *target.shape)


@pytest.mark.parametrize("peers", [3, 4, 64])
def test_the_others_are_summed_in_order_in_float64(peers: int) -> None:
    """Those before, from the first on, and those after, from the last on."""
    predictions = [p.astype(np.float64) for p in dirichlet(0, peers)]
    predictions[0][0] = predictions[-1][0] = [-0.0, -0.0, -0.0, 1.0]
    for i, target in enumerate(soft_targets([p.astype(np.float32) for p in predictions])):
        ways = predictions[:i], predictions[:i:-1]
        before, after = (reduce(np.add, way) if way else np.zeros((5, 4)) for way in ways)
        assert target.tobytes() == ((before + after) / (peers - 1)).astype(np.float32).tobytes()


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_a_peers_own_prediction_is_no_part_of_its_soft_target(peers: int) -> None:
    predictions = dirichlet(1, peers)
    for i in range(peers):
        changed = [*predictions]
        changed[i] = dirichlet(99, 1)[0]
        assert soft_targets(changed)[i].tobytes() == soft_targets(predictions)[i].tobytes()


def test_agreement_is_the_share_of_equal_guesses_averaged_over_the_others() -> None:
    predictions = dirichlet(5, 4, batch=50)
    guesses = [p.argmax(axis=1) for p in predictions]
    expected = [np.mean([(g == h).mean() for j, h in enumerate(guesses) if j != i]) for i, g in enumerate(guesses)]
    np.testing.assert_allclose(agreement(predictions), expected)


@pytest.mark.parametrize("peers", [2, 3, 5])
@pytest.mark.parametrize(("rows", "classes"), [(4, 3), (128, 10), (256, 1000)])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_statistics_are_what_their_definitions_say(peers: int, rows: int, classes: int, spread: float) -> None:
    logits = np.random.default_rng(0).normal(0, spread, (peers, 2, rows, classes))
    said = np.exp(logits - logits.max(axis=-1, keepdims=True))
    said = (said / said.sum(axis=-1, keepdims=True)).astype(np.float32)
    said[0, 0, 0] = np.eye(classes, dtype=np.float32)[0]
    found = statistics(said)
    assert found.shape == (2, peers, len(STATISTICS))
    for exchange in range(2):
        predictions = list(said[:, exchange])
        targets, agreeing = soft_targets(predictions), agreement(predictions)
        for i, (own, target) in enumerate(zip(predictions, targets, strict=True)):
            expected = [
                entropy(own).mean(),
                own.max(axis=1).mean(dtype=np.float64),
                agreeing[i],
                divergence(own, target).mean(),
                divergence(target, own).mean(),
            ]
            np.testing.assert_allclose(found[exchange, i], expected, rtol=1e-6, atol=1e-6)
