"""Logs that many tests look into and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import logs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.finished(tmp_path_factory.mktemp("log") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch, in the middle of writing."""
    folder = logs.unfinished(tmp_path_factory.mktemp("log") / "killed", 5)
    (stream,) = folder.glob("exchange/*.arrow")
    stream.write_bytes(stream.read_bytes()[:-100])
    return folder
