"""Orders and layouts for any arguments (guarantee 1)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from entangled.alignment import Layout, Position, batch_digest, sample_order

SHUFFLES = st.one_of(st.sampled_from(["full", "none"]), st.integers(1, 10_000))
SEEDS = st.integers(0, 2**32 - 1)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=200), SHUFFLES, SEEDS, st.integers(0, 2**31))
def test_an_order_is_a_permutation_for_any_arguments(ids: list[int], shuffle, seed: int, epoch: int) -> None:
    array = np.array(ids, np.int64)
    order = sample_order(array, shuffle, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == sorted(ids)
    assert order.tolist() == sample_order(array, shuffle, seed, epoch).tolist()
    assert array.tolist() == ids  # untouched


@given(st.integers(1, 500), st.integers(1, 500), SEEDS)
def test_a_buffer_looks_ahead_by_its_size_at_most(samples: int, buffer: int, seed: int) -> None:
    order = sample_order(np.arange(samples), buffer, seed, 0)
    assert (order < np.arange(samples) + buffer).all()


@given(st.integers(1, 500), st.integers(1, 600), st.integers(1, 5))
def test_batches_are_the_order_cut_into_pieces(samples: int, batch_size: int, epochs: int) -> None:
    layout = Layout(samples=samples, batch_size=batch_size, epochs=epochs)
    order = np.arange(samples)[::-1]
    batches = [layout.batch(order, step) for step in range(layout.steps_per_epoch)]
    assert np.concatenate(batches).tolist() == order.tolist()
    assert [len(b) for b in batches] == [layout.rows(step) for step in range(layout.steps_per_epoch)]
    assert all(1 <= len(b) <= batch_size for b in batches)
    assert [layout.index(layout.position(i)) for i in range(layout.positions)] == list(range(layout.positions))


@given(
    st.data(), st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(0, 2**32), st.integers(0, 2**32)
)
def test_any_change_of_a_batch_changes_its_digest(data: st.DataObject, ids: list[int], epoch: int, step: int) -> None:
    place = data.draw(st.integers(0, len(ids) - 1))
    digest = batch_digest(Position(epoch, step), np.array(ids))
    changed = [*ids[:place], ids[place] + 1, *ids[place + 1 :]]
    assert digest != batch_digest(Position(epoch, step), np.array(changed))
    assert digest != batch_digest(Position(epoch, step), np.array([*ids[:place], *ids[place + 1 :]], np.int64))
    assert digest != batch_digest(Position(epoch, step + 1), np.array(ids))
    assert digest != batch_digest(Position(epoch + 1, step), np.array(ids))
