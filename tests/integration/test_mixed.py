"""Three frameworks in one run, killed and started again; each is trained again from the log to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.runs import entangled

SETTINGS = ["epochs=2", "exchange.data=mnist[:400]", "batch_size=40", "checkpoint.steps=3"]
FAULTS = ("mlp-jax.before-update.5", "mlp-torch.in-checkpoint.2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the shipped experiment `mixed`, small, in which two peers were killed."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "faults").mkdir()
    for fault in FAULTS:
        (folder / "faults" / fault).touch()
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    done = entangled("run", "mixed", *overrides, "--run-dir", "run", cwd=folder, faults=folder / "faults", seconds=240)
    assert done.returncode == 0, done.stderr
    assert not list((folder / "faults").iterdir())
    return folder / "run"


def test_three_frameworks_learn_together(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["exchanges"] == 20
    for values in summary["peers"].values():
        assert values["train_accuracy"] > 0.4
        assert values["test_loss"] < 2.0
    assert "with another prediction" not in (run / "coordinator.log").read_text()


@pytest.mark.parametrize("peer", ["mlp-jax", "mlp-torch"])
def test_guarantee_6_replay_repeats_every_bit_on_every_backend(run: Path, tmp_path: Path, peer: str) -> None:
    done = entangled("replay", str(run), peer, "--run-dir", str(tmp_path / "again"), seconds=240)
    assert done.returncode == 0, done.stderr
    assert "predictions: all 20 equal the logged ones to the bit" in done.stdout
    assert "final weights: equal to the bit" in done.stdout
