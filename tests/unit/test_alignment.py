"""Positions, sample orders, digests and fingerprints: what guarantee 1 is made of."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter

import numpy as np
import pytest

from entangled.alignment import Layout, Position, batch_digest, fingerprint, sample_order

IDS = np.arange(37)


def test_guarantee_1_the_digest_is_over_position_and_ordered_ids() -> None:
    ids = np.array([5, 3, 9])
    data = struct.pack("<qqqqq", 2, 7, 5, 3, 9)
    assert batch_digest(Position(2, 7), ids) == hashlib.blake2b(data, digest_size=16).digest()
    others = [
        batch_digest(Position(2, 8), ids),
        batch_digest(Position(3, 7), ids),
        batch_digest(Position(7, 2), ids),
        batch_digest(Position(2, 7), ids[::-1]),
        batch_digest(Position(2, 7), ids[:2]),
        batch_digest(Position(2, 7), np.array([5, 3, 8])),
    ]
    assert len({batch_digest(Position(2, 7), ids), *others}) == 7


def test_a_digest_does_not_depend_on_how_the_ids_lie_in_memory() -> None:
    strided = np.repeat(np.array([5, 3, 9], np.int32), 2)[::2]
    assert batch_digest(Position(0, 0), strided) == batch_digest(Position(0, 0), np.array([5, 3, 9]))


@pytest.mark.parametrize("shuffle", [1, 2, 10, 36, 37, 38, 1000, "full", "none"])
def test_an_order_is_a_permutation_and_a_function_of_its_arguments(shuffle) -> None:
    order = sample_order(IDS, shuffle, seed=3, epoch=1)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == IDS.tolist()
    assert order.tolist() == sample_order(IDS, shuffle, seed=3, epoch=1).tolist()
    if shuffle in (1, "none"):
        assert order.tolist() == IDS.tolist()
    else:
        assert order.tolist() != sample_order(IDS, shuffle, seed=3, epoch=2).tolist()
        assert order.tolist() != sample_order(IDS, shuffle, seed=4, epoch=1).tolist()


def test_a_buffer_never_looks_further_ahead_than_its_size() -> None:
    """What `tf.data.Dataset.shuffle(n)` promises: the sample drawn i-th is one of the first i + n."""
    for epoch in range(20):
        order = sample_order(IDS, 5, seed=0, epoch=epoch)
        assert all(sample < i + 5 for i, sample in enumerate(order.tolist()))


def test_a_buffer_draws_uniformly_and_what_stays_can_stay_long() -> None:
    orders = [sample_order(IDS, 5, seed=0, epoch=epoch).tolist() for epoch in range(2000)]
    firsts = Counter(order[0] for order in orders)
    assert set(firsts) == set(range(5))
    assert all(300 < count < 500 for count in firsts.values())
    # One of five places is drawn each time, so sample 0 survives ten draws with probability 0.8 ** 10.
    late = sum(order.index(0) >= 10 for order in orders) / len(orders)
    assert late == pytest.approx(0.8**10, abs=0.03)


@pytest.mark.parametrize("shuffle", [37, 1000, "full"])
def test_a_buffer_as_large_as_the_data_is_a_full_shuffle(shuffle) -> None:
    small = np.arange(4)
    orders = Counter(tuple(sample_order(small, shuffle, seed=1, epoch=epoch).tolist()) for epoch in range(2400))
    assert len(orders) == 24
    assert all(60 < count < 150 for count in orders.values())


def test_the_ids_themselves_are_shuffled_not_their_places() -> None:
    ids = np.array([100, 7, 50])
    for shuffle in (2, "full", "none"):
        assert sorted(sample_order(ids, shuffle, 0, 0).tolist()) == [7, 50, 100]


@pytest.mark.parametrize(("samples", "size", "last"), [(10, 4, 2), (8, 4, 4), (3, 8, 3), (1, 1, 1), (9, 1, 1)])
def test_a_layout_divides_every_order_with_a_short_last_batch(samples: int, size: int, last: int) -> None:
    layout = Layout(samples=samples, batch_size=size, epochs=3)
    order = sample_order(np.arange(samples), "full", 0, 0)
    batches = [layout.batch(order, step) for step in range(layout.steps_per_epoch)]
    assert np.concatenate(batches).tolist() == order.tolist()
    assert [len(b) for b in batches] == [layout.rows(step) for step in range(layout.steps_per_epoch)]
    assert len(batches[-1]) == last
    positions = [Position(e, s) for e in range(3) for s in range(layout.steps_per_epoch)]
    assert [layout.index(p) for p in positions] == list(range(layout.positions))
    assert [layout.position(i) for i in range(layout.positions)] == positions


def test_guarantee_1_a_fingerprint_changes_with_everything_it_is_over() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6)
    ids = np.arange(6)
    base = fingerprint(ids, 3, x, y)
    changed = x.copy()
    changed[5, 1] += 1
    others = [
        fingerprint(ids[::-1], 3, x, y),
        fingerprint(ids[:5], 3, x, y),
        fingerprint(ids, 4, x, y),
        fingerprint(ids, 3, changed, y),
        fingerprint(ids, 3, x[::-1], y),
        fingerprint(ids, 3, x.reshape(2, 6), y),
        fingerprint(ids, 3, x.view(np.int32), y),
        fingerprint(ids, 3, x, y[::-1]),
        fingerprint(ids, 3, y, x),
        fingerprint(ids, 3),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert base == fingerprint(ids, 3, np.asfortranarray(x), np.repeat(y, 2)[::2])
    assert fingerprint(ids, 3).contents_digest == b""
    assert "6 samples, 3 classes" in str(base)
    assert base.contents_digest.hex() in str(base)
    assert "not compared" in str(fingerprint(ids, 3))
