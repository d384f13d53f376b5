"""What the tests that look at whole runs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entangled.exchange_log import read


def assert_equal_to_the_bit(one: Path, other: Path, peers: tuple[str, ...] = ("cnn", "mlp")) -> None:
    """The same exchanges in both logs, and the same final weights."""
    import keras

    for (a, _), (b, _) in zip(read(one), read(other), strict=True):
        assert (a.position, a.peer, a.weight, a.digest) == (b.position, b.peer, b.weight, b.digest)
        assert a.prediction.tobytes() == b.prediction.tobytes(), f"{a.peer} differs at {a.position}"
    for name in peers:
        first, second = (keras.models.load_model(run / "peers" / name / "final.keras") for run in (one, other))
        for v, w in zip(first.get_weights(), second.get_weights(), strict=True):
            assert np.array_equal(v, w)
