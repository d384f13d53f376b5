"""Ways of combining the others' predictions, and of publishing one's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from entangled.distribution import (
    CLIP,
    Combination,
    check,
    combined,
    entropy,
    most_probable,
    published,
    rounded,
    soft_targets,
    statistics,
    tempered,
)

HOW = ["mean", "geometric", "confidence", "coverage"]


def dirichlet(seed: int, peers: int, rows: int = 6, classes: int = 4, alpha: float = 0.3) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).dirichlet(np.full(classes, alpha), (peers, rows)).astype(np.float32))


def combination(how: str, peers: int, **rest) -> Combination:
    return Combination(how, coverage=tuple((i % 4, (i + 1) % 4) for i in range(peers)), **rest)


def by_hand(how: str, others: list[np.ndarray], coverage: list[tuple[int, ...]]) -> np.ndarray:
    """The definitions, row by row and class by class."""
    rows, classes = others[0].shape
    found = np.zeros((rows, classes))
    for row in range(rows):
        said = [p[row].astype(float) for p in others]
        for c in range(classes):
            match how:
                case "mean":
                    found[row, c] = sum(p[c] for p in said) / len(said)
                case "geometric":
                    found[row, c] = np.prod([max(p[c], CLIP) for p in said]) ** (1 / len(said))
                case "confidence":
                    sure = [1 - float(entropy(p)) / np.log(classes) for p in said]
                    found[row, c] = sum(w * p[c] for w, p in zip(sure, said, strict=True)) / sum(sure)
                case _:
                    experts = [p[c] for p, covered in zip(said, coverage, strict=True) if c in covered]
                    found[row, c] = np.mean(experts or [p[c] for p in said])
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("peers", [3, 5])
def test_each_way_is_what_its_definition_says_of_the_others_alone(how: str, peers: int) -> None:
    predictions, chosen = dirichlet(peers, peers), combination(how, peers)
    for i, target in enumerate(soft_targets(predictions, chosen)):
        others = [p for j, p in enumerate(predictions) if j != i]
        coverage = [c for j, c in enumerate(chosen.coverage) if j != i]
        np.testing.assert_allclose(target, by_hand(how, others, coverage), atol=1e-6)
        assert target.dtype == np.float32
        check(target, *target.shape)


@pytest.mark.parametrize("how", HOW)
def test_two_peers_get_each_others_prediction_to_the_bit(how: str) -> None:
    a, b = dirichlet(0, 2)
    for_a, for_b = soft_targets([a, b], combination(how, 2))
    assert (for_a.tobytes(), for_b.tobytes()) == (b.tobytes(), a.tobytes())


@pytest.mark.parametrize("how", HOW)
def test_extreme_predictions_still_give_distributions(how: str) -> None:
    certain = np.eye(4, dtype=np.float32)
    nobody = np.full((4, 4), 0.25, np.float32)
    for said in ([certain, certain[::-1], np.roll(certain, 1, 0)], [nobody] * 3, [certain, nobody, nobody]):
        for target in soft_targets(said, combination(how, 3)):
            check(target, 4, 4)


def test_coverage_without_an_expert_is_the_mean() -> None:
    predictions = dirichlet(3, 4)
    silent = Combination("coverage", coverage=((),) * 4)
    for target, mean in zip(soft_targets(predictions, silent), soft_targets(predictions), strict=True):
        np.testing.assert_allclose(target, mean, atol=1e-7)


@pytest.mark.parametrize("peers", [2, 3])
def test_temperature_and_top_k_are_of_the_soft_target(peers: int) -> None:
    predictions = dirichlet(4, peers)
    plain = soft_targets(predictions)
    for target, before in zip(soft_targets(predictions, Combination(temperature=0.5)), plain, strict=True):
        np.testing.assert_allclose(target, before**2 / (before**2).sum(axis=1, keepdims=True), atol=1e-6)
    for target, before in zip(soft_targets(predictions, Combination(top_k=2)), plain, strict=True):
        assert ((target > 0).sum(axis=1) <= 2).all()
        assert np.array_equal(target.argmax(axis=1), before.argmax(axis=1))
        check(target, *target.shape)


@pytest.mark.parametrize("how", HOW)
def test_statistics_are_about_the_soft_targets_that_were_given(how: str) -> None:
    predictions, chosen = dirichlet(5, 3), combination(how, 3, temperature=0.7)
    found = statistics(np.stack(predictions), chosen)
    for own, target, measured in zip(predictions, soft_targets(predictions, chosen), found, strict=True):
        p, q = (np.clip(x.astype(float), CLIP, 1) for x in (own, target))
        assert measured[3] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)


def test_a_temperature_of_one_is_nothing_and_low_ones_do_not_overflow() -> None:
    (p,) = dirichlet(6, 1)
    np.testing.assert_allclose(tempered(p, 1.0), p, atol=1e-6)
    for temperature in (0.01, 100.0):
        check(tempered(p, temperature).astype(np.float32), *p.shape)


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_rounded_rows_sum_to_one_and_are_within_a_unit(decimals: int) -> None:
    (p,) = dirichlet(7, 1, rows=200, classes=10)
    shown = rounded(p, decimals)
    np.testing.assert_allclose(shown.sum(axis=1), 1.0, atol=1e-12)
    assert np.abs(shown - p).max() < 10.0**-decimals + 1e-6
    np.testing.assert_allclose(shown * 10**decimals, np.rint(shown * 10**decimals), atol=1e-9)


def test_of_equals_the_lower_class_stays() -> None:
    assert most_probable(np.full((1, 4), 0.25), 1).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert rounded(np.full((1, 4), 0.25), 1).tolist() == [[0.3, 0.3, 0.2, 0.2]]


def test_what_is_published_is_the_prediction_itself_unless_something_is_asked_for() -> None:
    (p,) = dirichlet(8, 1)
    assert published(p) is p
    shown = published(p, temperature=2.0, top_k=2, decimals=1)
    check(shown, *p.shape)
    assert ((shown > 0).sum(axis=1) <= 2).all()
    assert set(np.rint(shown.reshape(-1) * 10)) <= set(range(11))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rest", [{}, {"temperature": 2.0}, {"top_k": 2}], ids=["as it is", "tempered", "cut"])
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_who_was_not_there_gets_what_it_would_have_got_for_any_prediction(how: str, rest, peers: int) -> None:
    predictions, chosen = dirichlet(peers, peers), combination(how, peers, **rest)
    members = [p for i, p in enumerate(predictions) if i != 1]
    among = replace(chosen, coverage=tuple(c for i, c in enumerate(chosen.coverage) if i != 1))
    assert combined(members, among).tobytes() == soft_targets(predictions, chosen)[1].tobytes()


@pytest.mark.parametrize("rest", [{}, {"temperature": 2.0}, {"top_k": 2}], ids=["as it is", "tempered", "cut"])
def test_one_that_is_alone_gets_its_own_and_has_no_agreement(rest) -> None:
    predictions, chosen = dirichlet(1, 1), combination("mean", 1, **rest)
    (target,) = soft_targets(predictions, chosen)
    assert target.tobytes() == predictions[0].tobytes()
    (measured,) = statistics(np.stack(predictions), chosen)
    assert measured[0] == pytest.approx(entropy(predictions[0]).mean())
    assert np.isnan(measured[2:]).all()


@pytest.mark.parametrize("how", HOW)
def test_guarantee_3_large_batches_are_combined_in_parts_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = list(np.random.default_rng(3).dirichlet(np.ones(5), (4, 7)).astype(np.float32))
    chosen = Combination(how, temperature=0.5, top_k=3, coverage=((0,), (1,), (), (2, 3)))
    whole = np.stack(soft_targets(made, chosen))
    for cached in (1, 4 * 5 * 2, 4 * 5 * 3 + 1):
        monkeypatch.setattr("entangled.distribution.CACHED", cached)
        assert np.stack(soft_targets(made, chosen)).tobytes() == whole.tobytes()
        assert soft_targets([p[:0] for p in made], chosen)[0].shape == (0, 5)


def test_guarantee_3_so_is_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dirichlet(4, peers=3)
    whole = np.stack(soft_targets(made))
    for cached in (1, 3 * 5, 3 * 4 * 2):
        monkeypatch.setattr("entangled.distribution.CACHED", cached)
        assert np.stack(soft_targets(made)).tobytes() == whole.tobytes()
        assert [target.shape for target in soft_targets([p[:0] for p in made])] == [(0, 4)] * 3
