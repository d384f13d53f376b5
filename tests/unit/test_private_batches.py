"""Private samples in batches of the peer's own order."""

from __future__ import annotations

import numpy as np
import pytest

from entangled.datasets import Dataset
from peer.private import PrivateBatches


def dataset(samples: int) -> Dataset:
    x, y = np.arange(samples, dtype=np.float32)[:, None], np.arange(samples) % 3
    return Dataset(x, y, np.arange(samples), x[:0], y[:0], 3)


@pytest.mark.parametrize(("samples", "size"), [(10, 4), (10, 5), (3, 8), (1, 2), (7, 7)])
def test_batches_are_full_and_every_sample_comes_as_often_as_any_other(samples: int, size: int) -> None:
    batches = PrivateBatches(dataset(samples), size, seed=1)
    stream = np.concatenate([batches.places(i) for i in range(6 * samples)])
    assert len(stream) == 6 * samples * size
    for epoch in range(6 * size):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples].tolist()) == list(range(samples))


def test_a_batch_is_a_function_of_its_number_alone() -> None:
    forwards, seeds = PrivateBatches(dataset(10), 4, 1), PrivateBatches(dataset(10), 4, 2)
    seen = [forwards.places(i).tolist() for i in range(20)]
    assert [PrivateBatches(dataset(10), 4, 1).places(i).tolist() for i in reversed(range(20))] == seen[::-1]
    assert [seeds.places(i).tolist() for i in range(20)] != seen
    x, labels = forwards.batch(7)
    assert x[:, 0].tolist() == seen[7]
    assert labels.argmax(axis=1).tolist() == [place % 3 for place in seen[7]]
