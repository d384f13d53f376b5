"""What the coordinator's recorder writes, and what its archive can answer from it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from coordinator import recorder
from coordinator.archive import Archive
from coordinator.events import Arrival, Exchange
from coordinator.recorder import Recorder
from entangled.alignment import batch_digest, sample_order
from entangled.distribution import prediction_digest, statistics
from entangled.errors import LogError
from entangled.exchange_log import read
from entangled.experiment import Experiment
from entangled.log_writer import Writer
from tests.support import SAMPLES, experiment, prediction

PEERS = ("a", "b", "c")


def exchanges(settings: Experiment) -> list[Exchange]:
    """All that are in a run, as the session completes them."""
    layout, found = settings.layout(SAMPLES), []
    for index in range(layout.positions):
        position = layout.position(index)
        ids = layout.batch(sample_order(np.arange(SAMPLES), 100, settings.seed, position.epoch), position.step)
        said = {peer: prediction(peer, position, len(ids)) for peer in settings.peer_names}
        arrivals = {peer: Arrival(p, 1000 * index + place, 99) for place, (peer, p) in enumerate(said.items())}
        found.append(Exchange(position, index, ids, batch_digest(position, ids), 0.5, arrivals))
    return found


def recorded(run: Path, settings: Experiment, **settled: int) -> list[int]:
    """Record a whole run, and thin as the peers settle; what was told to be on disk."""
    durable: list[int] = []
    failed: list[Exception] = []
    log = Recorder(run, settings, durable.append, failed.append)
    for exchange in exchanges(settings):
        log.add(exchange)
    for before in settled.values():
        log.thin(before)
    log.close(finished=not settled)
    assert failed == []
    return durable


@pytest.mark.parametrize(("at_once", "log"), [(1, "sampled"), (1024 * 1024, "sampled"), (1, "full")])
def test_every_row_has_its_predictions_digest_and_statistics_where_predictions_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, log: str
) -> None:
    """However many are computed on at once: the epochs' last batches are short."""
    monkeypatch.setattr(recorder, "STATISTICS_BYTES", at_once)
    settings = experiment(PEERS, epochs=4, log=log, **({} if log == "full" else {"log_every": 1}))
    assert recorded(tmp_path, settings)[-1] == 12
    rows = iter(read(tmp_path))
    for exchange in exchanges(settings):
        predictions = [arrival.probabilities for arrival in exchange.arrivals.values()]
        for peer, own, measured in zip(PEERS, predictions, statistics(np.stack(predictions)), strict=True):
            row, _ = next(rows)
            assert (row.index, row.peer, row.shape) == (exchange.index, peer, own.shape)
            assert row.prediction is not None
            assert row.prediction.tobytes() == own.tobytes()
            if log == "full":
                assert (row.prediction_digest, row.statistics) == (None, None)
                continue
            assert row.prediction_digest == prediction_digest(own)
            np.testing.assert_allclose(row.statistics, measured, rtol=1e-6)
    assert next(rows, None) is None


def test_of_large_predictions_few_are_written_before_it_is_told_that_they_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who may answer no more before the disk has caught up waits for all of them."""
    monkeypatch.setattr(recorder, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "BYTES_TOGETHER", 1)
    assert recorded(tmp_path, experiment(PEERS, epochs=4)) == list(range(1, 13))


def test_rows_made_as_exchanges_come_are_those_that_the_thread_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(PEERS, epochs=3).model_copy(update={"processes": 2})
    assert recorded(tmp_path / "at once", settings)[-1] == 9
    monkeypatch.setattr(recorder, "AT_ONCE_BYTES", 0)
    assert recorded(tmp_path / "later", settings)[-1] == 9
    at_once, later = ([link for _, link in read(tmp_path / when)] for when in ("at once", "later"))
    assert len(at_once) == 27
    assert at_once == later


@pytest.mark.parametrize(
    ("log", "every", "left"), [("full", None, range(6)), ("sampled", 4, [0, 4]), ("statistics", None, [])]
)
def test_a_finished_run_keeps_what_the_experiment_says(tmp_path: Path, log: str, every: int | None, left) -> None:
    recorded(tmp_path, experiment(PEERS, log=log, log_every=every))
    found = {row.index for row, _ in read(tmp_path) if row.prediction is not None}
    assert found == set(left)


def test_a_run_that_goes_on_is_thinned_as_far_as_it_is_settled(tmp_path: Path) -> None:
    settings = experiment(PEERS, log="statistics")
    recorded(tmp_path, settings, first=1, second=4)
    assert {row.index for row, _ in read(tmp_path) if row.prediction is not None} == {3, 4, 5}
    archive, layout = Archive(tmp_path, settings), settings.layout(SAMPLES)
    for exchange in exchanges(settings)[3:]:
        members, predictions = archive.exchange(exchange.position, exchange.index)
        assert members == PEERS
        assert [p.tobytes() for p in predictions] == [a.probabilities.tobytes() for a in exchange.arrivals.values()]
    with pytest.raises(LogError, match=r"exchange.log = statistics keeps no predictions that old.*start the run anew"):
        archive.exchange(layout.position(2), 2)
    assert [row.peer for row in archive.rows(layout.position(2), 2)] == list(PEERS)


@pytest.mark.parametrize("asked", [range(6), (0, 2, 3, 5), (2, 1, 0, 4), (1, 1, 2)])
def test_the_archive_answers_whatever_it_has_prefetched(tmp_path: Path, asked: Sequence[int]) -> None:
    settings = experiment(PEERS)
    recorded(tmp_path, settings)
    archive, known = Archive(tmp_path, settings), exchanges(settings)
    for index in asked:
        _, predictions = archive.exchange(known[index].position, index)
        expected = [a.probabilities for a in known[index].arrivals.values()]
        assert [p.tobytes() for p in predictions] == [p.tobytes() for p in expected]
        archive.prefetch()


@pytest.mark.parametrize("there", [0, 1, 3])
def test_the_archive_waits_for_the_rest_of_an_exchange_that_is_being_written(tmp_path: Path, there: int) -> None:
    settings = experiment(PEERS)
    recorded(tmp_path / "whole", settings)
    log, rows = Writer(tmp_path, bytes(16)), [row for row, _ in read(tmp_path / "whole")]
    archive = Archive(tmp_path, settings)
    for part in (rows[:3], rows[3 : 3 + there], rows[3 + there : 6]):
        for row in part:
            log.append(row)
        log.flush()
        archive.rows(rows[0].position, 0)
        archive.prefetch()
    assert [row.peer for row in archive.rows(rows[3].position, 1)] == list(PEERS)
    assert [row.peer for row in archive.rows(rows[0].position, 0)] == list(PEERS)


def test_the_archive_tells_of_damage_who_asks_for_what_is_damaged(tmp_path: Path) -> None:
    settings = experiment(PEERS)
    recorded(tmp_path / "whole", settings)
    log, rows = Writer(tmp_path, bytes(16)), [row for row, _ in read(tmp_path / "whole")]
    for row in (*rows[:3], *(row._replace(shape=(9, 9)) for row in rows[3:6])):
        log.append(row)
        log.flush()
    archive = Archive(tmp_path, settings)
    archive.rows(rows[0].position, 0)
    archive.prefetch()
    with pytest.raises(LogError, match="does not fill its shape"):
        archive.rows(rows[3].position, 1)


def test_waits_are_counted_by_a_clock_that_nobody_sets(tmp_path: Path) -> None:
    """The wall clock is set back by an hour, and forward by two, while predictions come in."""
    settings = experiment(PEERS, epochs=1)
    log = Recorder(tmp_path, settings, lambda _: None, lambda _: None)
    for exchange, jumps in zip(exchanges(settings), ([0, -3600, 7200], [9, 0, 0], [0, 0, -1]), strict=True):
        for (peer, arrival), jump, at in zip(exchange.arrivals.items(), jumps, (10.0, 10.5, 11.0), strict=True):
            exchange.arrivals[peer] = arrival._replace(received_at=10**15 + jump * 10**6, at=at)
        log.add(exchange._replace(at=11.0))
    log.close(finished=True)
    rows = [row for row, _ in read(tmp_path)]
    assert [row.wait_us for row in rows] == [1_000_000, 500_000, 0] * 3
    assert [row.received_at - 10**15 for row in rows][:3] == [0, -3600 * 10**6, 7200 * 10**6]
    again = Recorder(tmp_path, settings, lambda _: None, lambda _: None)
    assert (again.resumed, again.members) == (3, PEERS)
    again.close(finished=False)
