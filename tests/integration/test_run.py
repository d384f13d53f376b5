"""A whole run by its command, on a small slice of real MNIST."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from entangled.exchange_log import chain, genesis, read

ENTANGLED = [sys.executable, "-c", "from entangled.cli.main import main; main()"]
SMALL = ["smoke", "--set", "epochs=2", "--set", "exchange.data=mnist[:1000]"]


def entangled(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ENTANGLED, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        done = entangled("run", *SMALL, "--run-dir", name, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "run folder: " in done.stdout
    return folder


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
    import keras

    for (a, _), (b, _) in zip(read(runs / "one"), read(runs / "two"), strict=True):
        assert a.prediction.tobytes() == b.prediction.tobytes()
    for name in ("cnn", "mlp"):
        first, second = (keras.models.load_model(runs / r / "peers" / name / "final.keras") for r in ("one", "two"))
        for v, w in zip(first.get_weights(), second.get_weights(), strict=True):
            assert np.array_equal(v, w)


def test_a_peer_that_fails_ends_the_run_with_one_line(tmp_path: Path) -> None:
    done = entangled("run", *SMALL, "--set", "peers.mlp.model=nowhere:model", "--run-dir", "x", cwd=tmp_path)
    assert done.returncode == 1
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1
    assert "cannot find nowhere:model" in errors[0]
