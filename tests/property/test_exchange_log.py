"""Any rows survive the log to the bit, wherever it was flushed, finished or torn."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from entangled.alignment import Position
from entangled.exchange_log import Row, chain, partitions, read
from tests.support import GENESIS, same, writer

INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PREDICTIONS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=FLOATS)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    epochs = sorted(draw(st.lists(st.integers(0, 12_000), min_size=1, max_size=6)))
    return [
        Row(
            position=Position(epoch, draw(st.integers(0, 2**31 - 1))),
            index=draw(st.integers(0, 2**62)),
            peer=draw(NAMES),
            members=tuple(draw(st.lists(NAMES, max_size=4))),
            weight=float(draw(st.floats(0, 2.0**99, width=32))),
            sample_ids=draw(arrays.arrays(np.int64, st.integers(0, 5), elements=INT64)),
            digest=draw(st.binary(min_size=16, max_size=16)),
            shape=prediction.shape,
            prediction=draw(st.sampled_from([prediction, None])) if stored else prediction,
            prediction_digest=draw(st.binary(min_size=16, max_size=16)) if stored else None,
            statistics=draw(arrays.arrays(np.float32, 5, elements=FLOATS)) if stored else None,
            staleness=draw(INT32),
            received_at=draw(st.integers(0, 2**52)),
            wait_us=draw(INT64),
            bytes=draw(INT32),
        )
        for epoch in epochs
        for prediction, stored in [(draw(PREDICTIONS), draw(st.booleans()))]
    ]


@settings(max_examples=20)
@given(rows(), st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
def test_any_rows_are_read_back_to_the_bit(written: list[Row], flushes: list[bool], finish: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = writer(Path(folder))
        for row, flush in zip(written, flushes, strict=False):
            log.append(row)
            if flush:
                log.flush()
        if finish:
            log.finish_epoch()
        log.close()
        back = list(read(Path(folder)))
        assert [epoch for epoch, _ in partitions(Path(folder))] == sorted({row.position.epoch for row in written})
    assert len(back) == len(written)
    link = GENESIS
    for row, (found, stored) in zip(written, back, strict=True):
        assert same(row, found)
        assert chain(link, row) == chain(link, found) == stored
        link = stored
