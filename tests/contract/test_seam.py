"""What `seam.Exchange` promises, of every implementation: the gRPC client and the in-memory fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from entangled.alignment import Position, SampleIds, fingerprint, sample_order
from entangled.distribution import most_probable, transmitted
from entangled.errors import (
    AlignmentError,
    MembershipError,
    PatienceError,
    PredictionError,
    ProtocolError,
    RefusedError,
    RunFailedError,
)
from entangled.experiment import Experiment
from entangled.participation.seam import Exchange, SoftTarget
from tests.support import CLASSES, SAMPLES, data, experiment, prediction

Meet = Callable[[Experiment], Callable[[str], Exchange]]
START = Position(0, 0)
SECONDS = 60


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a peer's blocking call on a thread."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def exchange(peer: Exchange, name: str, position: Position, settings: Experiment, seed: int = 0) -> SoftTarget:
    """One honest exchange with made-up probabilities."""
    ids = settings.layout(SAMPLES).batch(peer.order(position.epoch), position.step)
    return peer.exchange(position, ids, prediction(name, position, len(ids), seed))


def whole_run(peer: Exchange, name: str, settings: Experiment) -> list[SoftTarget]:
    """What an honest trainer does, without the training."""
    layout = settings.layout(SAMPLES)
    peer.join(data())
    targets = [exchange(peer, name, layout.position(index), settings) for index in range(layout.positions)]
    peer.finish({"test_loss": 1.0})
    return targets


def test_guarantee_1_every_peer_gets_the_orders_that_the_experiment_says(meet: Meet) -> None:
    settings = experiment(epochs=3)
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    for epoch in (0, 1, 2, 1, 0):
        expected = sample_order(np.arange(SAMPLES), 100, settings.seed, epoch)
        for order in (a.order(epoch), b.order(epoch)):
            assert order.dtype == np.int64
            assert order.tolist() == expected.tolist()
    with pytest.raises(ProtocolError, match="no such epoch") as refused:
        a.order(3)
    assert refused.value.got == "3"


def test_there_is_no_order_before_a_first_peer_has_joined(meet: Meet) -> None:
    with pytest.raises(ProtocolError, match="before a first peer has joined"):
        meet(experiment())("a").order(0)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_every_peer_gets_the_mean_of_the_others_and_the_weight(meet: Meet, background, names: tuple[str, ...]) -> None:
    settings = experiment(names, epochs=4)
    layout = settings.layout(SAMPLES)
    peer = meet(settings)
    futures = [background(whole_run, peer(name), name, settings) for name in names]
    targets = {name: future.result(SECONDS) for name, future in zip(names, futures, strict=True)}
    for index in range(layout.positions):
        position = layout.position(index)
        made = {name: prediction(name, position, layout.rows(position.step)) for name in names}
        for name in names:
            target = targets[name][index]
            others = [made[other] for other in names if other != name]
            assert target.probabilities.dtype == np.float32
            np.testing.assert_allclose(target.probabilities, np.mean(others, axis=0), atol=1e-7)
            assert target.weight == position.epoch / 4  # guarantee 5: by the schedule, exact in float32
            if len(others) == 1:
                assert target.probabilities.tobytes() == others[0].tobytes()


def test_large_predictions_go_the_same_way(meet: Meet, background) -> None:
    """They are written without protobuf, and past bundles."""
    settings, names, classes = experiment(("a", "b", "c")), ("a", "b", "c"), 20_000
    layout, random = settings.layout(SAMPLES), np.random.default_rng(0)
    said = {name: random.dirichlet(np.ones(classes), SAMPLES).astype(np.float32) for name in names}

    def run(peer: Exchange, name: str) -> list[tuple[SampleIds, SoftTarget]]:
        peer.join(fingerprint(np.arange(SAMPLES), classes))
        found = []
        for index in range(layout.positions):
            position = layout.position(index)
            ids = layout.batch(peer.order(position.epoch), position.step)
            found.append((ids, peer.exchange(position, ids, said[name][ids])))
        peer.finish({})
        return found

    peer = meet(settings)
    futures = {name: background(run, peer(name), name) for name in names}
    for name, future in futures.items():
        others = [said[other] for other in names if other != name]
        for ids, target in future.result(SECONDS):
            np.testing.assert_allclose(target.probabilities, np.mean(others, axis=0)[ids], atol=1e-7)


def test_guarantee_1_another_data_set_is_refused_at_the_door(meet: Meet, background) -> None:
    settings = experiment()
    peer = meet(settings)
    a = peer("a")
    a.join(data())
    with pytest.raises(AlignmentError, match="data set") as refused:
        peer("b").join(data(contents=1.0))
    assert refused.value.expected == str(data())
    assert refused.value.got == str(data(contents=1.0))
    waiting = background(exchange, a, "a", START, settings)
    b = peer("b")
    b.join(data())
    exchange(b, "b", START, settings)
    assert waiting.result(SECONDS).probabilities.shape == (4, CLASSES)


def test_strangers_are_refused(meet: Meet) -> None:
    peer = meet(experiment())
    with pytest.raises(MembershipError, match="no such peer") as refused:
        peer("z").join(data())
    assert (refused.value.expected, refused.value.got) == ("a or b", "z")


def test_a_second_process_under_a_name_is_refused_while_the_first_is_there(meet: Meet) -> None:
    peer = meet(experiment())
    peer("a").join(data())
    with pytest.raises(MembershipError, match=r"peer a is here already, from .*(process|thread) [0-9]+"):
        peer("a").join(data())


def test_nothing_goes_before_joining(meet: Meet) -> None:
    peer = meet(experiment())
    a = peer("a")
    with pytest.raises(ProtocolError, match="join"):
        a.exchange(START, np.arange(4), prediction("a", START, 4))
    with pytest.raises(ProtocolError, match="join"):
        a.forget(0)
    with pytest.raises(ProtocolError, match="join"):
        a.report(START, {"loss": 1.0})
    a.join(data())


BAD = {
    "other samples": (AlignmentError, lambda p, ids: (p, ids[::-1], prediction("a", p, 4))),
    "another position": (AlignmentError, lambda p, ids: (Position(0, 1), ids, prediction("a", p, 4))),
    "too many rows": (PredictionError, lambda p, ids: (p, ids, prediction("a", p, 5))),
    "too few classes": (PredictionError, lambda p, ids: (p, ids, np.full((4, 2), 0.5, np.float32))),
    "not a number": (PredictionError, lambda p, ids: (p, ids, np.full((4, CLASSES), np.nan, np.float32))),
    "negative": (PredictionError, lambda p, ids: (p, ids, np.tile(np.float32([1.5, -0.5, 0]), (4, 1)))),
    "not normalised": (PredictionError, lambda p, ids: (p, ids, np.full((4, CLASSES), 0.5, np.float32))),
}


@pytest.mark.parametrize("name", BAD)
def test_guarantees_1_and_4_a_refusal_is_raised_here_and_nobody_else_notices(meet: Meet, background, name: str) -> None:
    settings = experiment()
    peer = meet(settings)
    kind, make = BAD[name]
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    waiting = background(exchange, b, "b", START, settings)
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    with pytest.raises(kind) as refused:
        a.exchange(*make(START, ids))
    assert refused.value.expected
    assert refused.value.got
    again = peer("a")
    again.join(data())
    target = exchange(again, "a", START, settings)
    assert target.probabilities.tobytes() == prediction("b", START, 4).tobytes()
    assert waiting.result(SECONDS).probabilities.tobytes() == prediction("a", START, 4).tobytes()


def test_after_a_refusal_everything_says_why(meet: Meet) -> None:
    a = meet(experiment())("a")
    a.join(data())
    for _ in range(2):
        with pytest.raises(AlignmentError, match="other samples"):
            a.exchange(START, np.arange(4)[::-1], prediction("a", START, 4))
    a.fail("told above")  # never raises


def test_a_peer_that_fails_ends_the_run_for_everybody(meet: Meet, background) -> None:
    settings = experiment(("a", "b", "c"))
    peer = meet(settings)
    a, b, c = (peer(name) for name in "abc")
    for each in (a, b, c):
        each.join(data())
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    waiting = [background(x.exchange, START, ids, prediction(name, START, 4)) for x, name in ((a, "a"), (b, "b"))]
    c.fail("no memory left")
    for each in waiting:
        with pytest.raises(RunFailedError, match="peer c failed: no memory left"):
            each.result(SECONDS)
    c.fail("again")
    a.fail("told by c")


def test_a_run_that_failed_while_a_peer_computed_is_told_at_its_next_exchange(meet: Meet) -> None:
    settings = experiment()
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    b.fail("no memory left")
    for _ in range(2):
        with pytest.raises(RunFailedError, match="peer b failed: no memory left"):
            a.exchange(START, ids, prediction("a", START, 4))


def test_a_prediction_is_published_before_its_result_is_asked_for(meet: Meet) -> None:
    settings = experiment()
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    a.submit(START, ids, prediction("a", START, 4))
    a.report(START, {"loss": 1.0})  # there is time for other things
    assert exchange(b, "b", START, settings).probabilities.tobytes() == prediction("a", START, 4).tobytes()
    assert a.result(START).probabilities.tobytes() == prediction("b", START, 4).tobytes()


def test_predictions_are_published_as_far_ahead_as_the_experiment_says(meet: Meet) -> None:
    settings = experiment(epochs=3, lookahead=4)
    peer, layout = meet(settings), settings.layout(SAMPLES)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    assert (a.lookahead(never), b.lookahead(never)) == (4, 4)

    def submit(one: Exchange, name: str, index: int) -> None:
        position = layout.position(index)
        ids = layout.batch(one.order(position.epoch), position.step)
        one.submit(position, ids, prediction(name, position, len(ids)))

    for index in range(5):  # over the end of an epoch, while the other has not begun
        submit(a, "a", index)
    for index in range(layout.positions):
        submit(b, "b", index)
        position = layout.position(index)
        rows = layout.rows(position.step)
        assert a.result(position).probabilities.tobytes() == prediction("b", position, rows).tobytes()
        if index + 5 < layout.positions:
            submit(a, "a", index + 5)
        assert b.result(position).probabilities.tobytes() == prediction("a", position, rows).tobytes()
    a.finish({"test_loss": 1.0}), b.finish({"test_loss": 1.0})


@pytest.mark.parametrize("classes", [3, 20_000], ids=["small", "large"])
def test_what_is_published_ahead_goes_out_while_its_peer_is_busy_with_something_else(
    meet: Meet, background, classes: int
) -> None:
    settings = experiment(lookahead=4)
    peer, layout, random = meet(settings), settings.layout(SAMPLES), np.random.default_rng(0)
    said = random.dirichlet(np.ones(classes), SAMPLES).astype(np.float32)
    a, b = peer("a"), peer("b")
    for one in (a, b):
        one.join(fingerprint(np.arange(SAMPLES), classes))
        one.lookahead(never)

    def submit(one: Exchange, index: int) -> SampleIds:
        position = layout.position(index)
        ids = layout.batch(one.order(position.epoch), position.step)
        one.submit(position, ids, said[ids])
        return ids

    for index in range(4):
        submit(a, index)  # and never waits for anything
    for index in range(4):
        ids = submit(b, index)
        target = background(b.result, layout.position(index)).result(SECONDS)
        assert target.probabilities.tobytes() == said[ids].tobytes()
    assert [a.result(layout.position(index)).probabilities.shape for index in (2, 1)] == [(2, classes), (4, classes)]


def a_step() -> float:
    return 1e-5


def never() -> float:
    raise AssertionError("the look-ahead is decided, nothing need be measured")


def test_the_look_ahead_that_hides_the_round_trip_is_decided_once_for_everybody(meet: Meet, background) -> None:
    settings = experiment(lookahead="auto")
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    asking = [background(one.lookahead, a_step) for one in (a, b)]
    decided = {one.result(SECONDS) for one in asking}
    assert len(decided) == 1
    assert decided.pop() >= 1
    assert exchange_both(a, b, settings)


def exchange_both(a: Exchange, b: Exchange, settings: Experiment) -> bool:
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    a.submit(START, ids, prediction("a", START, 4))
    b.submit(START, ids, prediction("b", START, 4))
    return a.result(START).probabilities.tobytes() == prediction("b", START, 4).tobytes()


@pytest.mark.parametrize("encoding", ["float16", "sparse"])
def test_a_soft_target_is_what_the_encoding_lets_through(meet: Meet, encoding: str) -> None:
    settings = experiment(encoding=encoding)
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    ids = settings.layout(SAMPLES).batch(a.order(0), 0)
    sent = transmitted(most_probable(prediction("a", START, 4), 2).astype(np.float32), encoding)
    a.submit(START, ids, sent)
    b.submit(START, ids, prediction("b", START, 4))
    assert b.result(START).probabilities.tobytes() == sent.tobytes()


def test_a_result_is_given_once_for_what_was_submitted(meet: Meet, background) -> None:
    settings = experiment()
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    with pytest.raises(ProtocolError, match="no prediction was submitted for epoch 0 step 0"):
        a.result(START)
    waiting = background(exchange, a, "a", START, settings)
    exchange(b, "b", START, settings)
    waiting.result(SECONDS)
    with pytest.raises(ProtocolError, match="its result has been given already"):
        a.result(START)


def test_guarantee_7_waiting_has_an_end_and_names_who_was_waited_for(meet: Meet) -> None:
    settings = experiment(("a", "b", "c"), patience=2.0)
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    a.join(data()), b.join(data())
    with pytest.raises(PatienceError, match=r"waited 2 s at epoch 0 step 0 for b \(connected\), c \(not connected\)"):
        exchange(a, "a", START, settings)


def test_a_peer_that_forgets_changes_nothing_for_anybody(meet: Meet, background) -> None:
    settings = experiment(log="statistics")
    peer, layout = meet(settings), settings.layout(SAMPLES)

    def forgetful(name: str) -> list[bytes]:
        mine = peer(name)
        mine.join(data())
        targets: list[bytes] = []
        for index in range(layout.positions):
            targets.append(exchange(mine, name, layout.position(index), settings).probabilities.tobytes())
            mine.forget(index)
        mine.finish({"test_loss": 1.0})
        return targets

    other = background(forgetful, "b")
    made = [prediction("b", p, layout.rows(p.step)).tobytes() for p in map(layout.position, range(layout.positions))]
    assert forgetful("a") == made
    assert len(other.result(SECONDS)) == layout.positions


def test_what_is_not_complete_cannot_be_forgotten(meet: Meet) -> None:
    settings = experiment()
    a = meet(settings)("a")
    a.join(data())
    with pytest.raises(ProtocolError, match="peer a settles positions that are not complete"):
        forget_and_go_on(a, settings)


def forget_and_go_on(peer: Exchange, settings: Experiment) -> None:
    """Over a network, a refusal is heard at the next exchange."""
    peer.forget(1)
    exchange(peer, "a", START, settings)


def test_nobody_may_finish_before_the_run_has(meet: Meet) -> None:
    peer = meet(experiment())
    for _ in range(8):  # the refusal races with what the peer says next, and must win every time
        a = peer("a")
        a.join(data())
        with pytest.raises(RefusedError, match="final metrics before the run's last batch"):
            a.finish({"test_loss": 1.0})


def test_guarantees_2_and_6_a_process_that_takes_another_ones_place_goes_through_the_same_run(
    meet: Meet, background
) -> None:
    """It repeats what its predecessor exchanged, gets the same answers, and goes on from there."""
    settings = experiment()
    layout = settings.layout(SAMPLES)
    peer = meet(settings)
    a = peer("a")
    assert a.join(data()) == 0
    other = background(whole_run, peer("b"), "b", settings)
    before = [exchange(a, "a", layout.position(index), settings) for index in range(3)]
    a.settle(3)
    with pytest.raises(AlignmentError):
        a.exchange(START, np.arange(4)[::-1], prediction("a", START, 4))  # its end
    again = peer("a")
    assert again.join(data()) == 3
    after = [exchange(again, "a", layout.position(index), settings) for index in range(layout.positions)]
    for one, two in zip(before, after[:3], strict=True):
        assert one.probabilities.tobytes() == two.probabilities.tobytes()
        assert one.weight == two.weight
    again.settle(layout.positions)
    again.finish({"test_loss": 1.0})
    assert len(other.result(SECONDS)) == layout.positions


def test_a_peer_that_has_finished_may_still_be_told_to_fail(meet: Meet, background) -> None:
    settings = experiment()
    peer = meet(settings)
    a, b = peer("a"), peer("b")
    other = background(whole_run, b, "b", settings)
    whole_run(a, "a", settings)
    other.result(SECONDS)
    a.fail("too late")


def test_peers_with_views_agree_on_the_samples_that_all_have(meet: Meet) -> None:
    peer = meet(experiment(("a", "b"), vertical=True))
    held = {"a": np.array([7, 3, 5]), "b": np.array([2, 5, 7, 70_000])}
    with ThreadPoolExecutor() as pool:
        agreed = list(pool.map(lambda name: peer(name).agree(held[name]), held))
    assert [ids.tolist() for ids in agreed] == [[5, 7], [5, 7]]
    assert peer("b").agree(held["b"]).tolist() == [5, 7]  # whoever comes back hears the same
    with pytest.raises(AlignmentError, match="lacks samples that all peers had"):
        peer("a").agree(held["a"][:2])


def test_the_others_go_on_without_one_that_stays_away_until_it_has_caught_up(meet: Meet, background) -> None:
    settings = experiment(epochs=2, on_missing="continue", missing_after=0.2)
    layout = settings.layout(SAMPLES)
    peer = meet(settings)
    a = peer("a")
    a.join(data())
    for index in range(4):
        position = layout.position(index)
        target = exchange(a, "a", position, settings)
        assert target.weight == 0.0
        assert target.probabilities.tobytes() == prediction("a", position, layout.rows(position.step)).tobytes()
    b = peer("b")
    assert b.join(data()) == 4
    for index in range(4):
        position = layout.position(index)
        target = exchange(b, "b", position, settings)
        assert target.weight == position.epoch / 2  # the schedule's: it is not b that was alone
        assert target.probabilities.tobytes() == prediction("a", position, layout.rows(position.step)).tobytes()
    for index in range(4, layout.positions):
        position = layout.position(index)
        waiting = background(exchange, a, "a", position, settings)
        rows = layout.rows(position.step)
        assert exchange(b, "b", position, settings).probabilities.tobytes() == prediction("a", position, rows).tobytes()
        assert waiting.result(SECONDS).probabilities.tobytes() == prediction("b", position, rows).tobytes()
    a.finish({"test_loss": 1.0}), b.finish({"test_loss": 1.0})
