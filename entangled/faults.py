"""Scheduled faults: a process kills itself at a named point, so that recovery is tested without chance or sleeps.

The environment variable ENTANGLED_FAULTS names a folder; an empty file `ROLE.POINT.N` in it, with dashes for spaces,
kills the process of that role when it passes the point for the N-th time, once: the file is removed first. Unset, as
outside of tests, a point costs nothing.

    mkdir faults; touch faults/coordinator.after-log-write.3 faults/cnn.in-checkpoint.1
    ENTANGLED_FAULTS=faults entangled run smoke
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def _passes(folder: Path) -> Callable[[str, str], None]:
    passed: Counter[str] = Counter()

    def point(role: str, name: str) -> None:
        key = f"{role}.{name.replace(' ', '-')}"
        passed[key] += 1
        try:
            (folder / f"{key}.{passed[key]}").unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return point


def _nothing(role: str, name: str) -> None:
    pass


point = _passes(Path(os.environ["ENTANGLED_FAULTS"])) if "ENTANGLED_FAULTS" in os.environ else _nothing
"""Pass the point `name` in the process of `role`."""
