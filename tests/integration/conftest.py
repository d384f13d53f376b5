"""TensorFlow in the tests' own process computes as a peer does: on one thread, so that sums run in the same order."""

import os

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path

import pytest

from tests.integration.runs import SMALL, entangled


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `one` and `two`, of the same small experiment; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        done = entangled("run", *SMALL, "--run-dir", name, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "run folder: " in done.stdout
    return folder
