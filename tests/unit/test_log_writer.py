"""Thinning: predictions go where nobody will ask for them again, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from entangled.errors import LogError
from entangled.exchange_log import partition_path, read, stream_path
from tests.support import log_rows, same, writer


def kept(run: Path) -> list[int]:
    """The indexes of the exchanges whose predictions are in the log."""
    return sorted({row.index for row, _ in read(run) if row.prediction is not None})


def never(_: int) -> bool:
    return False


@pytest.mark.parametrize(
    ("before", "left"),
    [(0, range(9)), (2, range(9)), (3, range(3, 9)), (5, range(3, 9)), (6, range(6, 9)), (9, range(6, 9))],
)
def test_only_finished_epochs_that_everybody_has_settled_are_thinned(tmp_path: Path, before: int, left: range) -> None:
    """Three epochs of three exchanges; the last one is still being written."""
    log, rows = writer(tmp_path), log_rows(epochs=3)
    for row in rows:
        log.append(row)
    log.flush()
    links = [link for _, link in read(tmp_path)]
    log.thin(before, never)
    assert kept(tmp_path) == list(left)
    for row, (found, link), written in zip(rows, read(tmp_path), links, strict=True):
        assert same(row if row.index in left else row._replace(prediction=None), found)
        assert link == written


def test_thinning_again_and_further_and_writing_on(tmp_path: Path) -> None:
    log, rows = writer(tmp_path), log_rows(epochs=3)
    for row in rows[:12]:
        log.append(row)
    log.finish_epoch()
    log.thin(3, lambda index: index % 2 == 0)
    assert kept(tmp_path) == [0, 2, 3, 4, 5]
    before = partition_path(tmp_path, 0).stat().st_ino
    log.close()
    again = writer(tmp_path)  # a coordinator that came back
    assert again.resumed == 6
    for row in rows[12:]:
        again.append(row)
    again.finish_epoch()
    again.thin(9, lambda index: index % 2 == 0)
    assert kept(tmp_path) == [0, 2, 4, 6, 8]
    assert partition_path(tmp_path, 0).stat().st_ino == before, "an epoch that was thinned was written once more"
    assert again.chain == list(read(tmp_path))[-1][1]


def test_a_thinned_epoch_is_smaller_on_disk(tmp_path: Path) -> None:
    log = writer(tmp_path)
    for row in log_rows(epochs=1, samples=4000, size=400):
        log.append(row)
    log.finish_epoch()
    size = partition_path(tmp_path, 0).stat().st_size
    log.thin(10, never)
    assert partition_path(tmp_path, 0).stat().st_size < size / 4


def test_a_damaged_epoch_is_not_thinned(tmp_path: Path) -> None:
    log = writer(tmp_path)
    for row in log_rows(epochs=1):
        log.append(row)
    log.finish_epoch()
    path = partition_path(tmp_path, 0)
    damaged = path.read_bytes()
    place = damaged.index(b"PAR1") + 40
    damaged = damaged[:place] + bytes([damaged[place] ^ 0xFF] * 8) + damaged[place + 8 :]
    path.write_bytes(damaged)
    with pytest.raises(LogError, match="cannot be read"):
        log.thin(3, never)
    assert path.read_bytes() == damaged


def test_what_follows_an_epoch_that_is_not_complete_is_not_gone_on_from(tmp_path: Path) -> None:
    """Nobody but who copies a log that is being written leaves that: the first epoch too soon, the second one later."""
    log, rows = writer(tmp_path), log_rows(epochs=2)
    log.append(*rows[:4])
    log.flush()
    early = stream_path(tmp_path, 0).read_bytes()
    log.append(*rows[4:8])
    log.close()
    partition_path(tmp_path, 0).unlink()
    stream_path(tmp_path, 0).write_bytes(early)
    again = writer(tmp_path)
    assert again.resumed == 2
    again.append(*rows[4:])
    again.finish_epoch()
    assert all(same(a, b) for a, (b, _) in zip(rows, read(tmp_path), strict=True))
