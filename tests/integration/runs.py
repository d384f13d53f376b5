"""What the tests that look at whole runs share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from entangled.exchange_log import digest_of, read

ENTANGLED = [sys.executable, "-c", "from entangled.cli.main import main; main()"]
SMALL = ["smoke", "--set", "epochs=2", "--set", "exchange.data=mnist[:1000]"]


def entangled(
    *arguments: str, cwd: Path | None = None, faults: Path | None = None, seconds: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run the command line; `faults` is the folder of scheduled ones."""
    environment = {**os.environ, **({"ENTANGLED_FAULTS": str(faults)} if faults else {})}
    return subprocess.run(
        [*ENTANGLED, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def assert_equal_to_the_bit(one: Path, other: Path, peers: tuple[str, ...] = ("cnn", "mlp")) -> None:
    """The same exchanges in both logs, and the same final weights."""
    import keras

    for (a, _), (b, _) in zip(read(one), read(other), strict=True):
        assert (a.position, a.peer, a.weight, a.digest) == (b.position, b.peer, b.weight, b.digest)
        assert digest_of(a) == digest_of(b), f"{a.peer} differs at {a.position}"
        if a.prediction is not None and b.prediction is not None:
            assert a.prediction.tobytes() == b.prediction.tobytes()
    for name in peers:
        first, second = (keras.models.load_model(run / "peers" / name / "final.keras") for run in (one, other))
        for v, w in zip(first.get_weights(), second.get_weights(), strict=True):
            assert np.array_equal(v, w)
