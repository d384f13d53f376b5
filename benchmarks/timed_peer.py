"""A peer's process that notes when it publishes and when it has its answer: `python -m benchmarks.timed_peer …`.

`peer` in all else. What it notes is in a file of float64 `(positions, 4)`, mapped into memory, so that a killed process
leaves it behind: by index, when `submit` began and ended and when `result` began and ended, in seconds since 1970 of
this host's clock; 0 where a position was not reached.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUBMIT, SUBMITTED, ASKED, ANSWERED = range(4)
Times = npt.NDArray[np.float64]


def note(path: Path, positions: int) -> None:
    """Have every submission and result of this process noted in the file at `path`."""
    from entangled.participation.client import CoordinatorClient

    if not path.exists():
        path.write_bytes(bytes(positions * 4 * 8))
    times = np.memmap(path, np.float64, "r+", shape=(positions, 4))
    submit, result = CoordinatorClient.submit, CoordinatorClient.result
    steps = 0

    def index(client: Any, position: Any) -> int:
        nonlocal steps
        if not steps:
            steps = -(-positions // client.experiment.epochs)
        return position.epoch * steps + position.step

    def noted_submit(self: Any, position: Any, *what: Any) -> None:
        began = time.time()
        submit(self, position, *what)
        times[index(self, position), :2] = began, time.time()

    def noted_result(self: Any, position: Any) -> Any:
        began = time.time()
        answer = result(self, position)
        times[index(self, position), 2:] = began, time.time()
        return answer

    CoordinatorClient.submit, CoordinatorClient.result = noted_submit, noted_result


def read(path: Path) -> Times:
    """What a peer noted, `(positions, 4)`."""
    return np.fromfile(path).reshape(-1, 4)


if __name__ == "__main__":
    from peer.__main__ import app

    note(Path(sys.argv[1]), int(sys.argv[2]))
    sys.argv = ["peer", *sys.argv[3:]]
    app()
