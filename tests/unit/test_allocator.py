"""Freed memory is kept for the next message."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from entangled import allocator

if sys.argv[1] == "kept":
    allocator.keep_freed()

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        messages = [np.ones(1 << 22, np.uint8) for _ in range(8)]
        del messages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_large_blocks_are_not_asked_of_the_system_again() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept < 1000 < returned


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    from entangled import allocator

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("it was not the user's"))
    allocator.keep_freed()
