"""The session where the experiment says `on_missing = "continue"`: exchanges without those who are missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from coordinator.events import (
    Answer,
    Decided,
    Departed,
    Disconnected,
    Effect,
    Failed,
    Finished,
    Joined,
    Left,
    MetricsArrived,
    Paced,
    PredictionArrived,
    Recall,
    Record,
    Synced,
    Ticked,
    Warn,
)
from coordinator.memory import REMEMBERED
from coordinator.session import LINGER, Restored, Session
from entangled import PROTOCOL_VERSION
from entangled.alignment import batch_digest
from entangled.distribution import combined, soft_targets
from entangled.errors import PatienceError, RunFailedError
from entangled.participation.seam import SoftTarget
from tests.support import SAMPLES, data, experiment, prediction

PEERS = "abc"
AFTER, PATIENCE = 5.0, 60.0


class Run:
    """A session with a clock and a disk; predictions are functions of peer and position."""

    def __init__(self, peers: str = PEERS, epochs: int = 2, restored: Restored | None = None, **exchange: Any) -> None:
        settings = experiment(tuple(peers), epochs, on_missing="continue", missing_after=AFTER, **exchange)
        self.now = 0.0
        self.session = Session(settings, self.now, restored)
        self.layout = settings.layout(SAMPLES)
        self.recorded: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self._numbers = dict.fromkeys(peers, 0)
        self._last = 0

    def handle(self, event: Any, *, sync: bool = True) -> list[Effect]:
        effects = self.session.handle(event, self.now)
        for effect in [*effects]:
            if isinstance(effect, Record):
                self.recorded.append(tuple(effect.exchange.arrivals))
                if sync:
                    effects += self.handle(Synced(effect.exchange.index + 1))
            elif isinstance(effect, Warn):
                self.said.append(effect.message)
        self.session.validate()
        return effects

    def join(self, peers: str, instance: str = "") -> None:
        for peer in peers:
            self._last += 1
            self._numbers[peer] = self._last
            self.handle(Joined(self._last, peer, instance or peer, "here", PROTOCOL_VERSION, data()))

    def leave(self, peers: str) -> None:
        for peer in peers:
            self.handle(Disconnected(self._numbers[peer]))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.handle(Ticked())

    def predict(self, peer: str, index: int, *, sync: bool = True) -> list[Effect]:
        position = self.layout.position(index)
        ids = self.layout.batch(self.session.order(position.epoch), position.step)
        said = prediction(peer, position, len(ids))
        arrived = PredictionArrived([self._numbers[peer]], position, batch_digest(position, ids), [said], [1], 0)
        return self.handle(arrived, sync=sync)

    def exchange(self, peers: Iterable[str], index: int) -> list[Effect]:
        effects: list[Effect] = []
        for peer in peers:
            effects = self.predict(peer, index)
        return effects

    def said_by(self, peers: str, index: int) -> list[np.ndarray]:
        position = self.layout.position(index)
        return [prediction(peer, position, self.layout.rows(position.step)) for peer in peers]

    def finish(self, peer: str) -> list[Effect]:
        end = self.layout.position(self.layout.positions - 1)
        self.handle(MetricsArrived(self._numbers[peer], end, {"test_loss": 1.0}, False, True))
        return self.handle(Left(self._numbers[peer], ""))

    def answer(self, effects: list[Effect], peer: str) -> SoftTarget:
        number = self._numbers[peer]
        (answer,) = [e for e in effects if isinstance(e, Answer) and number in e.connections]
        return SoftTarget(answer.probabilities[answer.connections.index(number)], answer.weight)


def test_the_others_wait_until_a_peer_is_missing_and_then_go_on_without_it() -> None:
    run = Run()
    run.join("abc")
    run.exchange("abc", 0)
    run.leave("b")
    assert run.exchange("ac", 1) == []
    assert run.wait(AFTER) == []
    effects = run.wait(0.1)
    assert run.said == ["peer b is missing: the others go on without it until it is back and has caught up"]
    for peer, others in ("a", "c"), ("c", "a"):
        answer = run.answer(effects, peer)
        assert answer.probabilities.tobytes() == run.said_by(others, 1)[0].tobytes()
    run.exchange("ca", 2)
    assert run.recorded == [("a", "b", "c"), ("a", "c"), ("a", "c")]


def test_guarantee_3_soft_targets_of_some_do_not_depend_on_the_order_of_arrival() -> None:
    targets: list[dict[str, bytes]] = []
    for order in ("abd", "bda", "dab"):
        run = Run("abcd")
        run.join("abd")
        run.wait(AFTER + 1)
        effects = run.exchange(order, 0)
        targets.append({peer: run.answer(effects, peer).probabilities.tobytes() for peer in "abd"})
        assert run.recorded == [("a", "b", "d")]
    expected = soft_targets(run.said_by("abd", 0))
    assert targets == [{peer: t.tobytes() for peer, t in zip("abd", expected, strict=True)}] * 3


def test_a_peer_that_was_in_before_it_went_missing_is_a_member() -> None:
    run = Run()
    run.join("abc")
    run.predict("b", 0)
    run.leave("b")
    run.wait(AFTER + 1)
    run.exchange("ac", 0)
    assert run.recorded == [("a", "b", "c")]


def test_a_slow_peer_is_waited_for_as_long_as_patience_lasts() -> None:
    run = Run()
    run.join("abc")
    run.exchange("ac", 0)
    assert run.wait(PATIENCE) == []
    (failed,) = run.wait(1.0)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PatienceError)
    assert "for b (connected)" in str(failed.error)
    assert run.recorded == []


def test_guarantee_5_the_weight_of_one_alone_is_0_and_its_soft_target_its_own() -> None:
    run = Run()
    run.join("a")
    run.wait(AFTER + 1)
    for index in range(4):
        effects = run.predict("a", index)
    assert run.recorded == [("a",)] * 4
    (record,) = [e for e in effects if isinstance(e, Record)]
    answer = run.answer(effects, "a")
    assert (record.exchange.weight, answer.weight) == (0.0, 0.0)
    assert answer.probabilities.tobytes() == run.said_by("a", 3)[0].tobytes()


def test_too_few_wait() -> None:
    run = Run(min_peers=2)
    run.join("ab")
    run.wait(AFTER + 1)
    run.exchange("ab", 0)
    run.leave("b")
    run.predict("a", 1)
    run.wait(AFTER + 1)
    assert run.recorded == [("a", "b")]
    assert run.session.waited_for() == ["b (not connected)", "c (not connected)"]
    run.join("c")
    run.predict("c", 1)
    assert run.recorded == [("a", "b"), ("a", "c")]


def test_who_comes_back_gets_what_it_missed_from_those_who_were_there_and_is_expected_again() -> None:
    run = Run()
    run.join("abc")
    run.exchange("abc", 0)
    run.leave("bc")
    run.predict("a", 1)
    run.wait(AFTER + 1)
    for index in (2, 3):
        run.predict("a", index)
    run.join("c")
    run.exchange("ca", 4)
    assert run.recorded == [("a", "b", "c"), ("a",), ("a",), ("a",), ("a", "c")]

    run.join("b", instance="again")
    assert run.answer(run.predict("b", 0), "b").probabilities.tobytes() == combined(run.said_by("ac", 0)).tobytes()
    for index in (1, 2, 3):
        answer = run.answer(run.predict("b", index), "b")
        assert answer.probabilities.tobytes() == run.said_by("a", index)[0].tobytes()
        assert answer.weight == (0.0, 0.0, 0.0, 0.5)[index]  # the schedule's: b was not the one who was alone
    answer = run.answer(run.predict("b", 4), "b")
    assert answer.probabilities.tobytes() == combined(run.said_by("ac", 4)).tobytes()
    assert len(run.recorded) == 5  # nothing of it is published
    run.exchange("ac", 5)
    assert len(run.recorded) == 5  # it is expected again
    run.predict("b", 5)
    assert run.recorded[5:] == [("a", "b", "c")]
    assert "peer b has caught up: it is expected again" in run.said


def test_guarantee_2_what_a_missing_peer_gets_does_not_hang_on_what_it_says() -> None:
    run = Run("ab")
    run.join("a")
    run.wait(AFTER + 1)
    run.predict("a", 0)
    run.join("b")
    first = run.answer(run.predict("b", 0), "b")
    again = run.answer(run.predict("b", 0), "b")
    assert first == again or first.probabilities.tobytes() == again.probabilities.tobytes()
    assert not any("repeated" in said for said in run.said)


def test_a_peer_that_catches_up_from_far_does_not_hold_the_others_up() -> None:
    run = Run("ab", epochs=200)
    run.join("a")
    run.wait(AFTER + 1)
    for index in range(300):
        run.predict("a", index)
    run.join("b")
    (recall,) = run.predict("b", 0)
    assert isinstance(recall, Recall)
    assert recall.weight == 0.0
    run.predict("a", 300)
    assert run.recorded[-1] == ("a",)
    for index in range(1, 300 - REMEMBERED):
        run.predict("b", index)
    assert run.said[-1].startswith("peer b is missing")
    run.predict("b", 301 - REMEMBERED)
    assert run.said[-1] == "peer b has caught up: it is expected again"
    run.predict("a", 301)
    assert len(run.recorded) == 301


def test_guarantee_7_who_catches_up_is_waited_for_as_long_as_it_gets_on() -> None:
    """Also where the others wait for it: it may have more to do than patience lasts."""
    for exchange in ({}, {"on_missing": "wait", "missing_after": None}):
        settings = experiment(("a", "b"), 2, **exchange)
        session = Session(settings, 0.0, Restored(data(), 5, ("a", "b"), {}))
        layout = settings.layout(SAMPLES)
        for number, peer in enumerate("ab"):
            session.handle(Joined(number, peer, peer, "here", PROTOCOL_VERSION, data()), 0.0)
        now = 0.0
        for index in range(4):
            now += PATIENCE - 1
            assert session.handle(Ticked(), now) == []
            position = layout.position(index)
            ids = layout.batch(session.order(position.epoch), position.step)
            said = prediction("b", position, len(ids))
            session.handle(PredictionArrived([1], position, batch_digest(position, ids), [said], [1], 0), now)
            session.handle(PredictionArrived([1], position, batch_digest(position, ids), [said], [1], 0), now + 1)
        (failed,) = session.handle(Ticked(), now + PATIENCE + 0.5)  # to repeat is not to get on
        assert isinstance(failed, Failed)


def test_guarantee_6_who_took_part_is_on_disk_before_anybody_is_answered() -> None:
    run = Run("ab")
    run.join("ab")
    run.predict("a", 0)
    effects = run.predict("b", 0, sync=False)
    assert [type(e) for e in effects] == [Record]
    assert [e.connections for e in run.handle(Synced(1)) if isinstance(e, Answer)] == [[1, 2]]


def test_guarantee_6_a_coordinator_that_comes_back_knows_from_the_log_who_was_missing() -> None:
    run = Run(restored=Restored(data(), 3, ("a", "c"), {}))
    run.join("ac")
    run.exchange("ac", 3)
    assert run.recorded == [("a", "c")]
    run.join("b")
    run.predict("b", 3)
    assert run.exchange("ac", 4) == []
    run.predict("b", 4)
    assert run.recorded == [("a", "c"), ("a", "b", "c")]


def test_a_peer_that_fails_is_missing_at_once_and_may_come_back() -> None:
    run = Run("ab")
    run.join("ab")
    run.exchange("ab", 0)
    run.predict("a", 1)
    effects = run.handle(Left(2, "no memory"))
    assert run.answer(effects, "a").weight == 0.0
    assert run.said == ["peer b failed: no memory; the others go on without it"]
    run.join("b")
    run.predict("b", 1)
    run.exchange("ab", 2)
    assert run.recorded == [("a", "b"), ("a",), ("a", "b")]


def test_the_last_one_that_fails_ends_the_run() -> None:
    run = Run("ab", min_peers=2)
    run.join("ab")
    (failed,) = run.handle(Left(2, "no memory"))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RunFailedError)
    assert "peer b failed: no memory" in str(failed.error)


def test_the_run_ends_without_those_who_are_missing() -> None:
    run = Run("ab")
    run.join("ab")
    run.exchange("ab", 0)
    run.leave("b")
    run.wait(AFTER + 1)
    for index in range(1, run.layout.positions):
        run.predict("a", index)
    assert run.finish("a") == [Departed("a", {"test_loss": 1.0}), Finished()]


def test_the_run_does_not_end_before_one_that_catches_up_has_come_to_the_end() -> None:
    run = Run("ab")
    run.join("a")
    run.wait(AFTER + 1)
    for index in range(run.layout.positions):
        run.predict("a", index)
    run.join("b")
    assert run.finish("a") == [Departed("a", {"test_loss": 1.0})]
    assert run.wait(LINGER + 1) == []
    for index in range(run.layout.positions):
        run.predict("b", index)
    assert run.finish("b") == [Departed("b", {"test_loss": 1.0}), Finished()]


def test_one_that_stays_away_at_the_very_end_is_missing_too() -> None:
    run = Run("ab")
    run.join("ab")
    for index in range(run.layout.positions):
        run.exchange("ab", index)
    run.leave("b")
    assert run.finish("a") == [Departed("a", {"test_loss": 1.0})]
    assert run.wait(AFTER - 1) == []
    run.wait(2)
    assert run.wait(LINGER)[-1:] == [Finished()]


@pytest.mark.parametrize("failure", ["no memory", ""])
def test_one_that_was_missing_and_fails_at_the_end_does_not_keep_the_run_open(failure: str) -> None:
    run = Run("ab")
    run.join("ab")
    for index in range(run.layout.positions):
        run.exchange("ab", index)
    run.finish("a")
    if failure:
        run.handle(Left(2, failure))
    else:
        run.leave("b")
        run.wait(AFTER + 1)
    assert run.wait(LINGER + 1)[-1:] == [Finished()]


def test_the_look_ahead_is_decided_without_those_who_are_missing() -> None:
    run = Run("ab", lookahead="auto")
    run.join("a")
    assert run.handle(Paced(1, 1000, 100)) == []
    (decided,) = [e for e in run.wait(AFTER + 1) if isinstance(e, Decided)]
    assert decided.lookahead == run.session.lookahead
    run.predict("a", 0)
    assert run.recorded == [("a",)]


@pytest.mark.parametrize("lookahead", [1, 3])
def test_one_that_looked_ahead_and_vanished_is_in_what_it_predicted_and_in_nothing_else(lookahead: int) -> None:
    run = Run("ab", lookahead=lookahead)
    run.join("ab")
    for index in range(lookahead):
        run.predict("b", index)
    run.leave("b")
    run.wait(AFTER + 1)
    for index in range(5):
        run.predict("a", index)
    assert run.recorded == [("a", "b")] * lookahead + [("a",)] * (5 - lookahead)
