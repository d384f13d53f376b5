"""No damage to a log's rows gets through `entangled log verify`, whatever it is and wherever it stands."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entangled.exchange_log import SCHEMA
from entangled.log.reader import open_run
from entangled.log.verify import verify
from tests import logs
from tests.damage import Rows, flip, put_together, take_apart


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Path]]:
    settings = logs.experiment(peers=("a", "b", "c"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        yield {
            "finished": logs.finished(path / "finished", settings),
            "killed": logs.unfinished(path / "killed", 5, settings),
            "sampled": logs.finished(path / "sampled", logs.keeping("sampled", "abc", log_every=4)),
            "of some": logs.of_some(path / "of some"),
            "statistics": logs.finished(path / "statistics", logs.keeping("statistics", "abc")),
        }


@st.composite
def damages(draw: st.DrawFn, rows: Rows) -> Rows:
    """`rows` after one to three of: a bit flipped in any column; rows removed, duplicated or reordered."""
    rows = list(rows)
    for _ in range(draw(st.integers(1, 3))):
        if not rows:
            break
        place = draw(st.integers(0, len(rows) - 1))
        match draw(st.sampled_from(["flip", "remove", "duplicate", "move", "shuffle"])):
            case "flip":
                column = draw(st.sampled_from(SCHEMA.names))
                rows[place] = flip(rows[place], column, draw(st.integers(0, 99)), draw(st.integers(0, 63)))
            case "remove":
                del rows[place : place + draw(st.integers(1, 4))]
            case "duplicate":
                rows.insert(draw(st.integers(0, len(rows))), rows[place])
            case "move":
                rows.insert(draw(st.integers(0, len(rows) - 1)), rows.pop(place))
            case _:
                rows = draw(st.permutations(rows))
    return rows


@pytest.mark.parametrize("state", ["finished", "killed", "sampled", "statistics", "of some"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_gets_through(runs: dict[str, Path], state: str, data: st.DataObject) -> None:
    run = open_run(runs[state])
    files = take_apart(run.folder)
    path = data.draw(st.sampled_from(sorted(files)))
    damaged = data.draw(damages(files[path]))
    assume(repr(damaged) != repr(files[path]))
    put_together({path: damaged})
    try:
        verdict = verify(run)
    finally:
        put_together(files)
    cut = len(damaged) % 3 == 0 and repr(damaged) == repr(files[path][: len(damaged)])
    if state == "killed" and path == max(files) and cut:
        # Whole exchanges less at the end are what a killed writer leaves; nothing could tell.
        assert verdict.fault is None
        assert verdict.exchanges == 3 + len(damaged) // 3
    else:
        assert verdict.fault is not None
        assert verdict.fault.expected != verdict.fault.got
    assert verify(run).fault is None
