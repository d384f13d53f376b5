"""A whole run by its command, on a small slice of real MNIST."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entangled.exchange_log import chain, genesis, read
from tests.integration.runs import SMALL, assert_equal_to_the_bit, entangled


def test_the_run_folder_holds_everything(runs: Path) -> None:
    run = runs / "one"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["exchanges"] == 16
    assert summary["final_weight"] == pytest.approx(0.025)
    for name in ("cnn", "mlp"):
        peer = run / "peers" / name
        assert len((peer / "metrics.jsonl").read_text().splitlines()) == 2
        assert (peer / "initial.weights.h5").exists()
        assert (peer / "final.keras").exists()
        assert summary["peers"][name]["train_accuracy"] > 0.5
        assert set(summary["peers"][name]) >= {"train_loss", "test_accuracy", "test_loss", "agreement"}


def test_the_log_is_whole_and_its_chain_unbroken(runs: Path) -> None:
    run = runs / "one"
    link, rows = genesis((run / "experiment.toml").read_text()), 0
    for row, stored in read(run):
        link, rows = chain(link, row), rows + 1
        assert link == stored
        assert row.index == (rows - 1) // 2
        assert row.peer == ("cnn", "mlp")[(rows - 1) % 2]
    assert rows == 32
    assert json.loads((run / "summary.json").read_text())["chain"] == link.hex()


def test_the_same_experiment_gives_the_same_predictions_and_weights_to_the_bit(runs: Path) -> None:
    assert_equal_to_the_bit(runs / "one", runs / "two")


def test_a_peer_that_fails_ends_the_run_with_one_line(tmp_path: Path) -> None:
    done = entangled("run", *SMALL, "--set", "peers.mlp.model=nowhere:model", "--run-dir", "x", cwd=tmp_path)
    assert done.returncode == 1
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1
    assert "cannot find nowhere:model" in errors[0]
