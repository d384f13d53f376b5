"""The session under any sequence of events, in any order (guarantees 2, 3 and 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.session import (
    Answer,
    Disconnected,
    Effect,
    Event,
    Failed,
    Finished,
    Joined,
    Left,
    MetricsArrived,
    PredictionArrived,
    Record,
    Session,
    Synced,
    Ticked,
)
from entangled import PROTOCOL_VERSION
from entangled.alignment import Position, batch_digest
from entangled.errors import AlignmentError, PredictionError, RefusedError
from tests.support import CLASSES, SAMPLES, data, experiment, prediction, raised

NAMES = "abcde"


def joined(connection: int, peer: str, instance: str = "", **changes: Any) -> Joined:
    values = {
        "connection": connection,
        "peer": peer,
        "instance": instance or peer,
        "origin": "here",
        "protocol_version": PROTOCOL_VERSION,
        "fingerprint": data(),
    }
    return Joined(**(values | changes))


def predicted(session: Session, connection: int, peer: str, index: int, seed: int = 0, **changes: Any):
    layout = session.experiment.layout(SAMPLES)
    position = layout.position(index)
    ids = layout.batch(session.order(position.epoch), position.step)
    values = {
        "connections": [connection],
        "position": position,
        "digest": batch_digest(position, ids),
        "probabilities": [prediction(peer, position, len(ids), seed)],
        "sizes": [1],
        "received_at": 0,
    }
    return PredictionArrived(**(values | changes))


HOW = st.sampled_from(["mean", "geometric", "confidence", "coverage"])


@given(st.data(), st.integers(2, 5), HOW)
def test_guarantee_3_soft_targets_do_not_depend_on_the_order_of_arrival(
    choose: st.DataObject, peers: int, how: str
) -> None:
    names = tuple(NAMES[:peers])
    plan = experiment(names, combine=how, temperature=0.5 if peers == 2 else 1.0)
    runs: list[dict[tuple[int, str], bytes]] = []
    for shuffled in (False, True):
        session = Session(plan, 0.0)
        order = choose.draw(st.permutations(names)) if shuffled else names
        for name in order:
            session.handle(joined(NAMES.index(name), name), 0.0)
        seen: dict[tuple[int, str], bytes] = {}
        for index in range(plan.layout(SAMPLES).positions):
            order = choose.draw(st.permutations(names)) if shuffled else names
            effects = []
            for name in order:
                effects = session.handle(predicted(session, NAMES.index(name), name, index), 0.0)
            seen |= {
                (index, NAMES[connection]): target.tobytes()
                for e in effects
                if isinstance(e, Answer)
                for connection, target in zip(e.connections, e.probabilities, strict=True)
            }
            (record,) = (e.exchange for e in effects if isinstance(e, Record))
            assert tuple(record.arrivals) == names
        assert len(seen) == peers * plan.layout(SAMPLES).positions
        runs.append(seen)
    assert runs[0] == runs[1]


# What may happen, as data: (kind, connection, choice, number). Most of it is wrong at most times.
ACTIONS = st.tuples(
    st.sampled_from(
        ["join", "everybody", "everybody", "predict", "predict", "report", "finish", "leave", "cut", "tick"]
    ),
    st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7]),
    st.sampled_from([0, 0, 0, 0, 1, -1, -2, -3]),
)


def events(session: Session, action: tuple[str, int, int, int]) -> list[Event]:
    kind, connection, choice, number = action
    peer = "abz"[choice % 3]
    match kind:
        case "join":
            changes: dict[str, Any] = [{}, {}, {}, {}, {"protocol_version": 9}, {"fingerprint": data(1.0)}, {}, {}][
                choice
            ]
            return [joined(connection, peer, instance=f"{peer}{number % 2}", **changes)]
        case "everybody" if session.layout is not None and session.complete < session.layout.positions:
            there = [m for m in session.members.values() if m.connection is not None]
            return [predicted(session, m.connection or 0, m.name, session.complete) for m in there]
        case "predict" if session.layout is not None:
            index = min(max(session.complete + number, 0), session.layout.positions - 1)
            rows = session.layout.rows(session.layout.position(index).step)
            bad: list[dict[str, Any]] = [
                {},
                {"digest": bytes(16)},
                {"digest": b""},
                {"position": Position(number + 3, 2**32 - 1)},
                {"probabilities": [np.full((rows, CLASSES), np.nan, np.float32)]},
                {"probabilities": [np.zeros((0, 0), np.float32)]},
                {"probabilities": [np.full((rows, CLASSES), -1, np.float32)]},
                {},
            ]
            return [predicted(session, connection, peer, index, seed=choice % 2, **bad[choice])]
        case "report":
            return [MetricsArrived(connection, Position(choice, number + 3), {"loss": float(number)}, False, False)]
        case "finish":
            return [MetricsArrived(connection, Position(1, 2), {"test_loss": 1.0}, False, True), Left(connection, "")]
        case "leave":
            return [Left(connection, "broken" if choice == 0 else "")]
        case "cut":
            return [Disconnected(connection)]
        case "tick":
            return [Ticked()]
        case _:
            return []


def state(session: Session) -> object:
    """All that a refusal must not change."""
    members = [
        (m.name, m.connection, m.instance, m.done, m.final, m.position, m.values) for m in session.members.values()
    ]
    return session.complete, session.over, session.weight, session.fingerprint, session.waited_for(), repr(members)


@settings(max_examples=400)  # most sequences end in a corner; it takes this many to get everywhere
@given(
    st.lists(ACTIONS, min_size=16, max_size=80), st.sampled_from(["wait", "continue"]), st.sampled_from([0, 0, 1, 3])
)
def test_guarantees_2_and_7_no_sequence_of_events_breaks_the_session(
    actions: list[tuple[str, int, int, int]], on_missing: str, lookahead: int
) -> None:
    exchange = {"missing_after": 2.0} if on_missing == "continue" else {}
    session = Session(experiment(("a", "b"), on_missing=on_missing, lookahead=lookahead, **exchange), 0.0)
    session.handle(joined(0, "a", instance="a0"), 0.0)
    session.handle(joined(1, "b", instance="b0"), 0.0)
    first: dict[tuple[str, Position], bytes] = {}
    taken: dict[tuple[str, Position], bytes] = {}
    recorded: list[int] = []
    now = 0.0
    for action in actions:
        now += 1.0
        for event in events(session, action):
            before = state(session)
            connected = {m.connection: m.name for m in session.members.values()}
            try:
                effects = session.handle(event, now)
            except RefusedError:
                assert state(session) == before
                continue
            finally:
                session.validate()
            if isinstance(event, PredictionArrived) and not session.over:
                taken.setdefault((connected[event.connections[0]], event.position), event.probabilities[0].tobytes())
            for effect in effects:
                if isinstance(effect, Record):
                    exchange = effect.exchange
                    effects += session.handle(Synced(exchange.index + 1), now)
                    session.validate()
                    recorded.append(exchange.index)
                    assert on_missing == "continue" or set(exchange.arrivals) == {"a", "b"}
                    assert (exchange.weight == 0.0) or len(exchange.arrivals) == 2
                    for name, arrival in exchange.arrivals.items():
                        assert arrival.probabilities.tobytes() == taken[name, exchange.position]
                if isinstance(effect, Answer):
                    for connection, target in zip(effect.connections, effect.probabilities, strict=True):
                        key = connected[connection], effect.position
                        assert first.setdefault(key, target.tobytes()) == target.tobytes()
                if isinstance(effect, Failed | Finished):
                    assert session.over
    assert recorded == list(range(session.complete))  # each exchange once, in order
    assert {position for _, position in first} <= {session.experiment.layout(SAMPLES).position(i) for i in recorded}


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 4))
def test_peers_may_run_ahead_by_the_look_ahead_and_no_further(turns: list[int], lookahead: int) -> None:
    session = Session(experiment(("a", "b", "c"), epochs=3, lookahead=lookahead), 0.0)
    positions = session.experiment.layout(SAMPLES).positions
    for number, name in enumerate("abc"):
        session.handle(joined(number, name), 0.0)
    sent, records = [0, 0, 0], []
    for number in [*turns, *([0, 1, 2] * positions)]:
        if sent[number] == positions:
            continue
        event = predicted(session, number, "abc"[number], sent[number])
        if sent[number] > session.complete + lookahead:
            assert raised(AlignmentError, session.handle, event, 0.0) is not None
        else:
            effects = session.handle(event, 0.0)
            records += [effect.exchange for effect in effects if isinstance(effect, Record)]
            sent[number] += 1
        session.validate()
    assert session.complete == positions
    assert [(r.index, r.staleness) for r in records] == [(i, min(i, lookahead)) for i in range(positions)]


@given(st.integers(1, 4), st.integers(2, 5))
def test_a_peer_that_looks_ahead_leaves_no_position_out(lookahead: int, ahead: int) -> None:
    session = Session(experiment(("a", "b"), epochs=3, lookahead=lookahead), 0.0)
    session.handle(joined(0, "a"), 0.0)
    session.handle(predicted(session, 0, "a", 0), 0.0)
    assert raised(AlignmentError, session.handle, predicted(session, 0, "a", ahead), 0.0) is not None


@given(st.lists(st.sampled_from([("cut", 0), ("cut", 1), ("go", 0)]), max_size=40), st.integers(2, 4))
def test_however_often_connections_break_the_run_comes_to_its_end(cuts: list[tuple[str, int]], peers: int) -> None:
    names = tuple(NAMES[:peers])
    session = Session(experiment(names), 0.0)
    layout, connection = session.experiment.layout(SAMPLES), {name: NAMES.index(name) for name in names}
    number = len(names)
    for name in names:
        session.handle(joined(connection[name], name), 0.0)
    pending = [*cuts]
    for index in range(layout.positions):
        for name in names:
            while pending and pending[0][0] == "cut":
                broken = names[pending.pop(0)[1]]
                session.handle(Disconnected(connection[broken]), 0.0)
                connection[broken] = number = number + 1
                session.handle(joined(number, broken), 0.0)
                session.validate()
            pending = pending[1:]
            session.handle(predicted(session, connection[name], name, index), 0.0)
            session.validate()
    assert session.complete == layout.positions
    last = layout.position(layout.positions - 1)
    effects = []
    for name in names:
        session.handle(MetricsArrived(connection[name], last, {"test_loss": 1.0}, False, True), 0.0)
        effects = session.handle(Left(connection[name], ""), 0.0)
    assert any(isinstance(e, Finished) for e in effects)
    assert session.over


@given(st.data(), st.integers(2, 5), st.booleans())
def test_what_comes_together_is_what_comes_one_by_one(choose: st.DataObject, peers: int, on_disk: bool) -> None:
    """The same answers and the same log, whoever's predictions come as one event; with a wrong one among them, none."""
    names = NAMES[:peers]
    plan = experiment(tuple(names), combine="geometric")
    apart, together = Session(plan, 0.0), Session(plan, 0.0)
    for session in (apart, together):
        for number, name in enumerate(names):
            session.handle(joined(number, name), 0.0)
    for index in range(plan.layout(SAMPLES).positions):
        events = [predicted(apart, number, name, index) for number, name in enumerate(names)]
        order = choose.draw(st.permutations(range(peers)))
        cut = choose.draw(st.integers(0, peers))
        wanted, found = list[Effect](), list[Effect]()
        for number in order:
            wanted += apart.handle(events[number], 0.0)
        for some in (order[:cut], order[cut:]):
            if some:
                one = as_one([events[number] for number in some])
                assert [event.connections for event in one.apart()] == [(number,) for number in some]
                bad = [said.copy() for said in one.probabilities]
                bad[choose.draw(st.integers(0, len(some) - 1))][0, 0] = -1
                before = state(together)
                with pytest.raises(PredictionError, match="row 0 has a negative probability"):
                    together.handle(one._replace(probabilities=bad), 0.0)
                assert state(together) == before
                found += together.handle(one, 0.0)
                together.validate()
        assert comparable(found) == comparable(wanted)
        if on_disk:
            for session in (apart, together):
                session.handle(Synced(index + 1), 0.0)


def as_one(events: list[PredictionArrived]) -> PredictionArrived:
    connections = [connection for event in events for connection in event.connections]
    probabilities = [said for event in events for said in event.probabilities]
    return events[0]._replace(connections=connections, probabilities=probabilities, sizes=[1] * len(events))


def comparable(effects: list[Effect]) -> list[object]:
    """Effects without arrays, which cannot be compared."""
    found: list[object] = []
    for effect in effects:
        if isinstance(effect, Answer):
            found.append((effect.connections, effect.weight, [p.tobytes() for p in effect.probabilities]))
        elif isinstance(effect, Record):
            arrivals = effect.exchange.arrivals.items()
            found.append((effect.exchange.index, [(n, a.probabilities.tobytes(), a.size) for n, a in arrivals]))
        else:
            found.append(effect)
    return found
