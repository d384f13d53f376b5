"""Membership inference on logged predictions: the attacks' arithmetic, and the command on a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entangled.experiment_file import dumps, loads
from entangled.log.leakage import auc, likelihood_ratios, logits, members, true_positives
from tests import logs
from tests.command_line import from_json, log, table


def test_auc_is_how_often_a_member_scores_higher() -> None:
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 5, 30).astype(float), random.integers(0, 5, 40).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert auc(inside, outside) == pytest.approx(np.mean(pairs))
    assert auc([1.0], [0.0]) == 1.0
    assert auc([0.0], [0.0]) == 0.5
    assert true_positives(np.array([0.5, 0.5]), np.array([0.5, 0.5]), 0.01) == 0.0


def test_members_are_found_by_contents_not_by_place() -> None:
    x = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    assert members(x, x[[4, 1]]).tolist() == [False, True, False, False, True, False]


def test_shadow_models_see_what_a_threshold_cannot() -> None:
    """Samples differ in difficulty more than membership moves them: only who knows each one's difficulty can tell."""
    random = np.random.default_rng(1)
    difficulty = random.normal(0, 5, 400)
    inside = random.random((9, 400)) < 0.5
    scores = difficulty + inside * 1.5 + random.normal(0, 0.5, inside.shape)
    ratios = likelihood_ratios(scores[0], scores[1:], inside[1:])
    plain, lira = (auc(s[inside[0]], s[~inside[0]]) for s in (scores[0], ratios))
    assert plain < 0.7
    assert lira > 0.9


def test_samples_that_no_shadow_model_learned_from_can_still_be_judged() -> None:
    inside = np.array([[True, False, False], [True, True, False]])
    scores = np.array([[2.0, 0.0, -1.0], [2.0, 3.0, -1.0]])
    found = likelihood_ratios(np.array([2.0, 3.0, 1.0]), scores, inside)
    assert np.isfinite(found).all()
    assert found[1] > 0
    assert np.isfinite(logits(np.array([0.0, 1.0]))).all()


def recorded(folder: Path, seed: int, data: str = "tests.logs:digits") -> Path:
    private = [f"peers.{name}.private={{data='{data}', samples=4}}" for name in ("a", "b")]
    settings = loads(dumps(logs.experiment(seed=seed)), "test", private)
    recording = logs.Recording(folder, settings, seed)
    recording.record(6)
    return recording.finish()


def test_the_command_attacks_every_peer(tmp_path: Path) -> None:
    runs = [recorded(tmp_path / str(seed), seed) for seed in range(4)]
    shadows = [word for run in runs[1:] for word in ("--shadow", run)]
    found = from_json("leakage", runs[0], *shadows)
    assert [(f["peer"], f["attack"], f["members"]) for f in found] == [
        ("a", "loss threshold", 4),
        ("a", "LiRA", 4),
        ("b", "loss threshold", 4),
        ("b", "LiRA", 4),
    ]
    assert all(0 <= f["auc"] <= 1 and f["others"] > 0 for f in found)
    (first, *_) = table("leakage", runs[0])
    assert first["attack"] == "loss threshold"


def test_a_run_with_the_same_seed_is_no_shadow(tmp_path: Path) -> None:
    """Its peers learned from the same samples: LiRA would be told the answer."""
    run, same, other = recorded(tmp_path / "a", 0), recorded(tmp_path / "b", 0), recorded(tmp_path / "c", 1)
    assert log("leakage", run, "--shadow", other).exception is None
    for shadow in (run, same):
        said = str(log("leakage", run, "--shadow", other, "--shadow", shadow).exception)
        assert f"{shadow} is no shadow of {run}: both have the seed 0" in said


def test_where_there_is_nothing_to_attack_it_says_so(tmp_path: Path) -> None:
    shared = logs.finished(tmp_path / "shared")
    assert "there is nothing to tell apart" in str(log("leakage", shared).exception)
    elsewhere = recorded(tmp_path / "elsewhere", 0, data="tests.unit.test_leakage:others")
    assert "no exchanged sample is a private one of a" in str(log("leakage", elsewhere).exception)


def others():
    (x, y), test = logs.digits()
    return (x + 1, y), test
