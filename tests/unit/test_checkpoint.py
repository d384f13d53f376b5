"""Which checkpoints a peer keeps, and how far back it may yet have to go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entangled.participation import checkpoint
from entangled.participation.checkpoint import Checkpoint


def at(index: int) -> Checkpoint:
    return Checkpoint("run", index, {"loss": 0.5}, [np.arange(index + 1)])


def test_guarantee_6_saving_tells_where_a_peer_falls_back_to_if_the_newest_is_damaged(tmp_path: Path) -> None:
    assert [checkpoint.save(tmp_path, "a", at(index)) for index in (10, 25, 40)] == [0, 10, 25]
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    found = checkpoint.load(tmp_path, "run", complete=50)
    assert found is not None
    assert found.index == 25
    assert found.state[0].tolist() == list(range(26))


def test_guarantee_6_checkpoints_ahead_of_a_run_that_lost_its_end_go_for_what_comes_now(tmp_path: Path) -> None:
    for index in (10, 120, 130):
        checkpoint.save(tmp_path, "a", at(index))
    assert checkpoint.load(tmp_path, "run", complete=66) is None
    assert checkpoint.save(tmp_path, "a", at(10)) == 0, "it would promise never to go back behind what it has not done"
    assert [int(path.stem) for path in tmp_path.iterdir()] == [10]
