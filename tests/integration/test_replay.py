"""A peer is trained again from the log alone: to the same weights, or under another λ."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np

from entangled.exchange_log import read
from tests.integration.runs import assert_equal_to_the_bit, entangled


def test_a_replay_ends_with_the_same_weights_to_the_bit(runs: Path, tmp_path: Path) -> None:
    run, again = runs / "one", tmp_path / "again"
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    done = entangled("replay", str(run), "cnn", "--run-dir", str(again))
    assert done.returncode == 0, done.stderr
    assert "predictions: all 16 equal the logged ones to the bit" in done.stdout
    assert "final weights: equal to the bit" in done.stdout
    assert_equal_to_the_bit(run, again, ("cnn",))
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before, "a replay changed the run"
    verified = entangled("log", "verify", str(again))
    assert verified.returncode == 0, verified.stdout
    assert (
        json.loads((again / "summary.json").read_text())["peers"]
        == json.loads((run / "summary.json").read_text())["peers"]
    )


def test_a_counterfactual_changes_the_one_peer_and_is_a_run_of_its_own(runs: Path, tmp_path: Path) -> None:
    run, other = runs / "one", tmp_path / "other"
    what_if = "--set=exchange.weight.end=2.0", "--set=exchange.direction=other_self"
    done = entangled("replay", str(run), "mlp", *what_if, "--run-dir", str(other))
    assert done.returncode == 0, done.stderr
    assert entangled("log", "verify", str(other)).returncode == 0
    for (a, _), (b, _) in zip(read(run), read(other), strict=True):
        assert b.weight == (0.0 if b.position.epoch == 0 else 1.0)
        same = a.prediction.tobytes() == b.prediction.tobytes()
        assert same or (b.peer == "mlp" and b.position.epoch == 1)
    one, two = (keras.models.load_model(r / "peers" / "mlp" / "final.keras").get_weights() for r in (run, other))
    assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    refused = entangled(
        "replay", str(run), "mlp", "--set", "exchange.data=mnist[:900]", "--run-dir", str(tmp_path / "x")
    )
    assert refused.returncode == 1
    assert "a replay can change only" in refused.stderr
