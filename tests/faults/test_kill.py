"""A process of a run that is killed: one line that says which, exit code 1, and nobody left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.faults.launched import ENDLESS, Launched


@pytest.mark.parametrize("name", ["peer mlp", "coordinator"])
def test_a_killed_process_is_named_in_one_line_and_nobody_is_left(launch: Callable[..., Launched], name: str) -> None:
    launched = launch(*ENDLESS)
    launched.until_it_exchanges()
    os.kill(launched.role(name), signal.SIGKILL)
    assert launched.ended() == 1
    (line,) = launched.errors()
    assert line.startswith(f"error: {name}: ended by SIGKILL (its log: ")
