"""Runs to be disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.launched import Launched


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts `entangled run` with the given arguments."""
    with contextlib.ExitStack() as running:

        def start(*arguments: str) -> Launched:
            launched = Launched(tmp_path, *arguments)
            running.callback(launched.close)
            return launched

        yield start
