"""The coordinator's state machine, by events alone: guarantees 1, 2, 3, 4, 5 and 7."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from coordinator.events import (
    Answer,
    Departed,
    Disconnected,
    Failed,
    Finished,
    Joined,
    Left,
    MetricsArrived,
    PredictionArrived,
    Recall,
    Record,
    Settled,
    Synced,
    Thin,
    Ticked,
    Warn,
)
from coordinator.memory import REMEMBERED, WINDOW
from coordinator.session import LINGER, Restored, Session
from entangled import PROTOCOL_VERSION
from entangled.alignment import Position, batch_digest, fingerprint
from entangled.errors import (
    AlignmentError,
    MembershipError,
    PatienceError,
    PredictionError,
    ProtocolError,
    RunFailedError,
)
from entangled.experiment import parse

PEERS = ("a", "b", "c")
START = Position(0, 0)
DATA = fingerprint(np.arange(10), 3, np.zeros((10, 2)))


@pytest.fixture
def session() -> Iterator[Session]:
    """A session of three peers over ten samples in batches of four, two epochs; valid to its end."""
    values = {
        "name": "test",
        "epochs": 2,
        "batch_size": 4,
        "exchange": {"data": "mnist", "weight": {"schedule": "linear", "end": 1.0}, "patience": 60.0},
        "peers": {name: {"model": "mlp"} for name in PEERS},
    }
    session = Session(parse(values, "test"), now=0.0)
    yield session
    session.validate()


def join(session: Session, peer: str, connection: int | None = None, instance: str = "", data=DATA):
    number = PEERS.index(peer) if connection is None else connection
    return session.handle(Joined(number, peer, instance or peer, f"host of {peer}", PROTOCOL_VERSION, data), 0.0)


def predict(
    session: Session, peer: str, position: Position = START, seed: int = 0, connection: int | None = None, **changes
):
    """One peer's prediction; of what is changed, `probabilities` are that one's."""
    layout = session.layout
    assert layout is not None
    ids = layout.batch(session.order(position.epoch), position.step)
    random = np.random.default_rng([seed, PEERS.index(peer), *position])
    values = {
        "connections": [PEERS.index(peer) if connection is None else connection],
        "position": position,
        "digest": batch_digest(position, ids),
        "probabilities": random.dirichlet(np.ones(3), len(ids)).astype(np.float32),
        "sizes": [1],
        "received_at": 0,
    }
    said = values | changes
    return session.handle(PredictionArrived(**said | {"probabilities": [said["probabilities"]]}), 0.0)


def answers(effects) -> dict[int, np.ndarray]:
    return {
        connection: target
        for e in effects
        if isinstance(e, Answer)
        for connection, target in zip(e.connections, e.probabilities, strict=True)
    }


def join_all(session: Session) -> None:
    for peer in PEERS:
        join(session, peer)


def test_answers_come_when_the_last_prediction_is_in(session: Session) -> None:
    join_all(session)
    assert predict(session, "b") == []
    assert predict(session, "a") == []
    effects = predict(session, "c")
    assert set(answers(effects)) == {0, 1, 2}
    assert [list(e.exchange.arrivals) for e in effects if isinstance(e, Record)] == [list(PEERS)]


def test_guarantee_3_the_order_of_arrival_does_not_matter(session: Session) -> None:
    join_all(session)
    for peer in "abc":
        first = predict(session, peer)
    other = Session(session.experiment, now=0.0)
    join_all(other)
    for peer in "cab":
        second = predict(other, peer)
    for connection, target in answers(first).items():
        assert target.tobytes() == answers(second)[connection].tobytes()


def test_guarantee_1_another_order_another_batch_another_data_set_are_refused(session: Session) -> None:
    join_all(session)
    ids = session.layout.batch(session.order(0), 0)
    with pytest.raises(AlignmentError) as refused:
        predict(session, "a", digest=batch_digest(Position(0, 0), ids[::-1]))
    assert refused.value.expected == f"batch digest {batch_digest(Position(0, 0), ids).hex()}"
    assert refused.value.got == batch_digest(Position(0, 0), ids[::-1]).hex()
    with pytest.raises(AlignmentError, match="ahead of the run"):
        predict(session, "a", Position(0, 1))
    with pytest.raises(AlignmentError, match="does not have"):
        predict(session, "a", Position(0, 3))
    with pytest.raises(AlignmentError, match="data set"):
        join(session, "b", connection=7, instance="b", data=fingerprint(np.arange(10), 3, np.ones((10, 2))))
    assert session.complete == 0
    predict(session, "a"), predict(session, "b")
    assert len(answers(predict(session, "c"))) == 3  # the others were not disturbed


def test_guarantee_2_the_first_answer_wins(session: Session) -> None:
    join_all(session)
    predict(session, "a"), predict(session, "b")
    first = answers(predict(session, "c"))
    session.handle(Disconnected(0), 1.0)
    join(session, "a", connection=9, instance="a")
    again = predict(session, "a", connection=9)
    assert answers(again)[9].tobytes() == first[0].tobytes()
    assert not any(isinstance(e, Record | Warn) for e in again)
    different = predict(session, "a", connection=9, seed=5)
    assert any(isinstance(e, Warn) for e in different)
    assert answers(different)[9].tobytes() == first[0].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_guarantee_4_no_distribution_is_refused_and_nobody_disturbed(session: Session, value: float) -> None:
    join_all(session)
    bad = np.full((4, 3), 1 / 3, np.float32)
    bad[2, 1] = value
    with pytest.raises(PredictionError, match="peer a's prediction for epoch 0 step 0: row 2"):
        predict(session, "a", probabilities=bad)
    with pytest.raises(PredictionError, match="shape"):
        predict(session, "a", probabilities=np.full((3, 4), 0.25, np.float32))
    predict(session, "a"), predict(session, "b")
    assert len(answers(predict(session, "c"))) == 3


def test_guarantee_5_the_weight_comes_with_the_answer(session: Session) -> None:
    join_all(session)
    seen = []
    for index in range(session.layout.positions):
        for peer in PEERS:
            effects = predict(session, peer, session.layout.position(index))
        seen.append({e.weight for e in effects if isinstance(e, Answer)})
    assert seen == [{0.0}] * 3 + [{0.5}] * 3


def test_guarantee_7_a_wait_ends_and_names_who_was_waited_for(session: Session) -> None:
    join(session, "a"), join(session, "b")
    predict(session, "a")
    assert session.handle(Ticked(), 59.0) == []
    (effect,) = session.handle(Ticked(), 61.0)
    assert isinstance(effect, Failed)
    assert isinstance(effect.error, PatienceError)
    assert "b (connected), c (not connected)" in str(effect.error)


def test_strangers_doubles_and_the_uninvited_are_refused(session: Session) -> None:
    join(session, "a")
    with pytest.raises(MembershipError, match="a or b or c"):
        session.handle(Joined(5, "z", "z", "host", PROTOCOL_VERSION, DATA), 0.0)
    with pytest.raises(MembershipError, match="host of a"):
        join(session, "a", connection=5, instance="another")
    with pytest.raises(ProtocolError, match="versions"):
        session.handle(Joined(5, "b", "b", "host", PROTOCOL_VERSION + 1, DATA), 0.0)
    with pytest.raises(ProtocolError, match="join"):
        predict(session, "b")


def test_the_run_ends_when_all_have_left_and_fails_when_one_fails(session: Session) -> None:
    join_all(session)
    with pytest.raises(ProtocolError, match="before the run's last batch"):
        session.handle(MetricsArrived(0, Position(0, 0), {}, False, True), 0.0)
    for index in range(session.layout.positions):
        for peer in PEERS:
            predict(session, peer, session.layout.position(index))
    for connection in range(3):
        session.handle(MetricsArrived(connection, Position(1, 2), {"x": 1.0}, False, True), 0.0)
        effects = session.handle(Left(connection, ""), 0.0)
    assert effects == [Departed("c", {"x": 1.0}), Finished()]

    failing = Session(session.experiment, now=0.0)
    join_all(failing)
    (effect,) = failing.handle(Left(1, "no memory"), 0.0)
    assert isinstance(effect, Failed)
    assert isinstance(effect.error, RunFailedError)
    assert "peer b failed: no memory" in str(effect.error)


def exchange(session: Session, index: int) -> list:
    effects = []
    for peer in PEERS:
        effects = predict(session, peer, session.layout.position(index))
    return effects


def long_session(restored: Restored | None = None, **values: object) -> Session:
    values = {
        "name": "long",
        "epochs": 1000,
        "batch_size": 4,
        "exchange": {"data": "mnist"},
        "peers": {name: {"model": "mlp"} for name in PEERS},
        **values,
    }
    session = Session(parse(values, "test"), 0.0, restored)
    join_all(session)
    return session


def test_guarantee_6_what_only_the_log_remembers_is_recalled() -> None:
    session = long_session()
    for index in range(REMEMBERED + 2):
        exchange(session, index)
        session.handle(Synced(index + 1), 0.0)
        session.validate()
    (effect,) = predict(session, "b", START)
    assert isinstance(effect, Recall)
    assert (effect.connection, effect.peer, effect.index) == (1, "b", 0)
    assert len(answers(predict(session, "b", session.layout.position(5)))) == 1  # still in memory


def test_guarantee_6_the_log_is_thinned_only_where_every_peer_has_settled() -> None:
    session = long_session(exchange={"data": "mnist", "log": "statistics"})
    for index in range(5):
        exchange(session, index)
    assert session.handle(Settled(0, 3), 0.0) == []
    assert session.handle(Settled(1, 4), 0.0) == []
    assert session.handle(Settled(2, 2), 0.0) == [Thin(2)]
    assert session.handle(Settled(2, 1), 0.0) == []  # never back
    session.handle(Disconnected(2), 0.0)
    join(session, "c", connection=9, instance="c again")  # it has its checkpoints still
    assert session.handle(Settled(9, 5), 0.0) == [Thin(3)]
    with pytest.raises(ProtocolError, match="peer a settles positions that are not complete") as refused:
        session.handle(Settled(0, 6), 0.0)
    assert (refused.value.expected, refused.value.got) == ("at most 5", "6")


def test_a_full_log_is_never_thinned() -> None:
    session = long_session()
    exchange(session, 0)
    assert [session.handle(Settled(connection, 1), 0.0) for connection in range(3)] == [[], [], []]


def test_guarantee_6_no_more_is_answered_than_peers_can_repeat() -> None:
    session = long_session()
    for index in range(WINDOW):
        assert len(answers(exchange(session, index))) == 3
    assert answers(exchange(session, WINDOW)) == {}  # the disk is too far behind
    session.validate()
    released = session.handle(Synced(1), 0.0)
    assert set(answers(released)) == {0, 1, 2}
    assert {e.position for e in released} == {session.layout.position(WINDOW)}
    session.validate()


def test_guarantee_7_what_is_remembered_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(PEERS) * 4 * 3 * np.dtype(np.float32).itemsize
    monkeypatch.setattr("coordinator.memory.WINDOW_BYTES", 5 * whole)
    session = long_session()
    for index in range(20):
        exchange(session, index)
        session.handle(Synced(index + 1), 0.0)
        session.validate()
    assert [type(predict(session, "a", session.layout.position(index))[0]) for index in (14, 15)] == [Recall, Answer]


def test_guarantee_6_repeating_a_prediction_does_not_get_past_a_disk_that_is_behind() -> None:
    session = long_session()
    for index in range(WINDOW + 1):
        exchange(session, index)
    position = session.layout.position(WINDOW)
    session.handle(Disconnected(1), 0.0)
    join(session, "b", connection=7)
    for _ in range(2):
        assert predict(session, "b", position, connection=7) == []
        assert predict(session, "a", position) == []
    assert len(answers(predict(session, "a", session.layout.position(WINDOW - 1)))) == 1  # this one had been answered
    released = session.handle(Synced(1), 0.0)
    assert sorted(c for e in released for c in e.connections) == [0, 1, 2, 7]  # once each; nobody listens on 1 any more
    assert {e.position for e in released} == {position}
    session.validate()


def test_guarantee_6_after_a_restart_peers_repeat_what_the_log_has_lost() -> None:
    session = long_session(Restored(DATA, complete=4, members=PEERS, finals={}))
    assert session.complete == 4
    for index in range(4, 7):
        assert predict(session, "a", session.layout.position(index)) == []
    with pytest.raises(AlignmentError, match="ahead of the run"):
        predict(session, "a", session.layout.position(8))  # a gap
    for index in range(4, 7):
        predict(session, "b", session.layout.position(index))
    for index in range(4, 7):
        effects = predict(session, "c", session.layout.position(index))
        assert [e.exchange.index for e in effects if isinstance(e, Record)] == [index]
        session.validate()
    (recall,) = predict(session, "a", START)
    assert isinstance(recall, Recall)


def test_guarantee_6_a_peer_that_was_done_before_a_restart_is_not_waited_for() -> None:
    session = long_session()
    done = Session(
        session.experiment, 0.0, Restored(DATA, session.layout.positions, PEERS, {"a": {"x": 1.0}, "b": {"x": 2.0}})
    )
    assert done.waited_for() == ["c (not connected)"]
    join(done, "a")
    assert done.handle(Left(0, ""), 0.0) == []  # it never heard that it had been heard
    join(done, "c")
    done.handle(MetricsArrived(2, START, {"x": 3.0}, False, True), 0.0)
    assert done.handle(Left(2, ""), 0.0) == [Departed("c", {"x": 3.0})]
    assert done.handle(Ticked(), LINGER - 1) == []  # b may still come to hear it
    assert done.handle(Ticked(), LINGER + 1) == [Finished()]
