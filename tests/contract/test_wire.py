"""What comes from a peer that is wrong, byte by byte (guarantees 1 and 4).

It is refused with what was expected and what came, no weight ever reaches it, and nobody else notices.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from coordinator import server
from coordinator.lobby import limits
from entangled import PROTOCOL_VERSION, codec, sending
from entangled.alignment import Position, batch_digest, fingerprint
from entangled.errors import AlignmentError, EntangledError, MembershipError, PredictionError, ProtocolError
from entangled.exchange_log import read
from entangled.experiment import Experiment
from entangled.participation import link
from entangled.v1 import exchange_pb2 as pb
from tests.contract.conftest import Coordinate
from tests.contract.processes import LiveCoordinator
from tests.contract.raw import RawPeer, as_one, batch, final, join, on, predict
from tests.support import CLASSES, SAMPLES, data, experiment, prediction

BROKEN_AT = 2
"""The index at which the bad peer goes wrong; a batch of the short last kind."""
UNKNOWN = b"\xfa\x06\x03abc"  # field 111, three bytes


@pytest.fixture
def settings() -> Experiment:
    """Two peers, two epochs of three batches, the last of each short."""
    return experiment()


def honest(live: LiveCoordinator, settings: Experiment, peers: dict[str, RawPeer], begin: int, sent: set[str]) -> None:
    """Run to the end from index `begin`, which those in `sent` have predicted already; check every soft target."""
    layout = settings.layout(SAMPLES)
    for index in range(begin, layout.positions):
        for name in peers.keys() - (sent if index == begin else set()):
            peers[name].send(predict(settings, name, index))
        for name, peer in peers.items():
            target, position = peer.receive("soft_target"), layout.position(index)
            (other,) = peers.keys() - {name}
            assert (target.epoch, target.step) == position
            assert target.batch_digest == batch_digest(position, batch(settings, index)[1])
            assert target.weight == position.epoch / settings.epochs
            assert target.probabilities == prediction(other, position, layout.rows(position.step)).tobytes()
    for peer in peers.values():
        peer.leaves(settings)
    assert live.ended() is None
    rows = [row for row, _ in read(live.run)]
    assert [(row.index, row.peer) for row in rows] == [(i, p) for i in range(layout.positions) for p in "ab"]
    assert json.loads((live.run / "summary.json").read_text())["exchanges"] == layout.positions


def break_a_run(coordinate: Coordinate, settings: Experiment, *bad: pb.PeerMessage | bytes) -> EntangledError:
    """A run in which peer b sends `bad` at `BROKEN_AT`, is refused, and is replaced by an honest one; the refusal."""
    live = coordinate(settings)
    a, b = live.raw(), live.raw()
    a.joins("a"), b.joins("b")
    for index in range(BROKEN_AT):
        a.send(predict(settings, "a", index)), b.send(predict(settings, "b", index))
        a.receive("soft_target"), b.receive("soft_target")
    a.send(predict(settings, "a", BROKEN_AT))
    b.send(*bad)
    refusal = b.refused()
    assert b.soft_targets() == BROKEN_AT  # those for its good predictions, and with them no weight for a bad one
    again = live.raw()
    assert again.joins("b", instance="second b").complete == BROKEN_AT
    honest(live, settings, {"a": a, "b": again}, BROKEN_AT, sent={"a"})
    return refusal


def of(index: int, like: int, settings: Experiment) -> pb.PeerMessage:
    """A prediction for the position at `index` that is about the samples of the batch at `like`."""
    (position, _), (_, ids) = batch(settings, index), batch(settings, like)
    return codec.encode_prediction(position, batch_digest(position, ids), prediction("b", position, len(ids)))


def at_another_seed(settings: Experiment) -> pb.PeerMessage:
    """A prediction of somebody who shuffled the data himself."""
    return predict(settings.model_copy(update={"seed": 1}), "b", BROKEN_AT)


def reordered(settings: Experiment) -> pb.PeerMessage:
    """The right samples in another order."""
    position, ids = batch(settings, BROKEN_AT)
    return codec.encode_prediction(position, batch_digest(position, ids[::-1]), prediction("b", position, len(ids)))


def the_next(settings: Experiment) -> pb.PeerMessage:
    """The prediction for the next batch, whole with its position."""
    return predict(settings, "b", BROKEN_AT + 1)


def the_batch_before(settings: Experiment) -> pb.PeerMessage:
    """The samples of the batch before, as a pipeline gives them that is off by one."""
    return of(BROKEN_AT, BROKEN_AT - 1, settings)


def the_batch_after(settings: Experiment) -> pb.PeerMessage:
    """The samples of the batch after."""
    return of(BROKEN_AT, BROKEN_AT + 1, settings)


def no_such_step(settings: Experiment) -> pb.PeerMessage:
    """A step that is not in the epoch."""
    return codec.encode_prediction(Position(0, 3), bytes(16), prediction("b", Position(0, 3), 4))


def no_such_epoch(settings: Experiment) -> pb.PeerMessage:
    """An epoch that is not in the run."""
    return codec.encode_prediction(Position(2**32 - 1, 2**32 - 1), bytes(16), prediction("b", Position(0, 0), 4))


MISALIGNED = [at_another_seed, reordered, the_next, the_batch_before, the_batch_after, no_such_step, no_such_epoch]


@pytest.mark.parametrize("make", MISALIGNED, ids=lambda make: make.__name__)
def test_guarantee_1_a_prediction_for_other_samples_is_refused(
    coordinate: Coordinate, make: Callable[[Experiment], pb.PeerMessage], settings: Experiment
) -> None:
    message = make(settings)
    refusal = break_a_run(coordinate, settings, message)
    assert type(refusal) is AlignmentError
    assert "peer b" in refusal.message
    position, ids = batch(settings, BROKEN_AT)
    if "other samples" in refusal.message:
        assert refusal.expected == f"batch digest {batch_digest(position, ids).hex()}"
        assert refusal.got == message.prediction.batch_digest.hex()
    else:
        assert refusal.expected in (str(position), "2 epochs of 3 steps")
        assert refusal.got == str(Position(message.prediction.epoch, message.prediction.step))
    assert ("other samples" in refusal.message) == (
        make in (at_another_seed, reordered, the_batch_before, the_batch_after)
    )


@pytest.mark.parametrize(
    "other",
    [
        fingerprint(np.arange(SAMPLES), CLASSES, np.ones((SAMPLES, 2))),
        fingerprint(np.arange(SAMPLES)[::-1], CLASSES, np.zeros((SAMPLES, 2))),
        fingerprint(np.arange(SAMPLES - 1), CLASSES, np.zeros((SAMPLES - 1, 2))),
        fingerprint(np.arange(SAMPLES), CLASSES + 1, np.zeros((SAMPLES, 2))),
        fingerprint(np.arange(SAMPLES), CLASSES),
    ],
    ids=["contents", "order", "samples", "classes", "no contents"],
)
def test_guarantee_1_another_data_set_is_refused_at_the_door(coordinate: Coordinate, settings, other) -> None:
    live = coordinate(settings)
    a, b = live.raw(), live.raw()
    a.joins("a")
    a.send(predict(settings, "a", 0))
    b.send(join("b", fingerprint=other), predict(settings, "b", 0))
    refusal = b.refused()
    assert type(refusal) is AlignmentError
    assert (refusal.expected, refusal.got) == (str(data()), str(other))
    assert b.received == []
    again = live.raw()
    again.joins("b")
    honest(live, settings, {"a": a, "b": again}, 0, sent={"a"})


def values(*rows: list[float]) -> Callable[[Experiment], pb.PeerMessage]:
    """A prediction of these values for the right batch."""

    def make(settings: Experiment) -> pb.PeerMessage:
        position, ids = batch(settings, BROKEN_AT)
        return codec.encode_prediction(
            position, batch_digest(position, ids), np.array(rows, np.float32).reshape(len(rows), -1 if rows else 3)
        )

    return make


def changed(**fields: object) -> Callable[[Experiment], pb.PeerMessage]:
    """The right prediction with other fields."""

    def make(settings: Experiment) -> pb.PeerMessage:
        message = predict(settings, "b", BROKEN_AT)
        message.prediction.MergeFrom(pb.Prediction(**fields))
        return message

    return make


def nested(number: int) -> bytes:
    """A message whose field `number` holds an unknown field."""
    return bytes([number << 3 | 2, len(UNKNOWN)]) + UNKNOWN


GOOD = [1 / 3, 1 / 3, 1 / 3]
MALFORMED: dict[str, tuple[Callable[[Experiment], pb.PeerMessage | bytes], type[EntangledError], str]] = {
    "NaN": (values(GOOD, [np.nan, 0.5, 0.5]), PredictionError, "row 1 is not finite"),
    "infinite": (values([np.inf, 0, 0], GOOD), PredictionError, "row 0 is not finite"),
    "negative": (values(GOOD, [-0.5, 1, 0.5]), PredictionError, "row 1 has a negative probability"),
    "unnormalised": (values(GOOD, [0.5, 0.5, 0.5]), PredictionError, "row 1 does not sum to 1"),
    "logits": (values([3.2, -1.5, 0.1], [0.2, 2.5, -1]), PredictionError, "row 0 has a negative probability"),
    "too few rows": (values(GOOD), PredictionError, "wrong shape"),
    "too many rows": (values(GOOD, GOOD, GOOD), PredictionError, "wrong shape"),
    "too many classes": (values([0.25] * 4, [0.25] * 4), PredictionError, "wrong shape"),
    "turned": (values([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]), PredictionError, "wrong shape"),
    "bytes missing": (changed(probabilities=bytes(23)), PredictionError, "do not fill its shape"),
    "bytes more than said": (changed(rows=1), PredictionError, "do not fill its shape"),
    "no classes": (values([], []), PredictionError, "wrong shape"),
    "no rows": (values(), PredictionError, "wrong shape"),
    "unknown field": (lambda s: predict(s, "b", 2).SerializeToString() + UNKNOWN, ProtocolError, "not in the contract"),
    "unknown in prediction": (lambda _: nested(2), ProtocolError, "Prediction has fields that are not in the contract"),
    "unknown in metrics": (lambda _: nested(3), ProtocolError, "Metrics has fields that are not in the contract"),
    "unknown in leave": (lambda _: nested(4), ProtocolError, "Leave has fields that are not in the contract"),
    "unknown in a bundle": (
        lambda _: b"\x4a" + bytes([len(UNKNOWN) + 2]) + b"\x0a" + bytes([len(UNKNOWN)]) + UNKNOWN,
        ProtocolError,
        "PeerMessage has fields that are not in the contract",
    ),
    "unknown of a bundle": (lambda _: nested(9), ProtocolError, "PeerBundle has fields that are not in the contract"),
    "a bundle of bundles": (
        lambda s: sending.bundle_of_peers([sending.bundle_of_peers([predict(s, "b", 2)])]),
        ProtocolError,
        "a bundle of bundles",
    ),
    "twice of one channel": (
        lambda s: as_one(on(1, predict(s, "b", 2)), on(1, predict(s, "b", 2))),
        ProtocolError,
        "of several channels, each once",
    ),
    "of no channel": (
        lambda s: pb.PeerMessage(predictions=pb.Predictions(prediction=predict(s, "b", 2).prediction)),
        ProtocolError,
        "of several channels, each once",
    ),
    "of more channels than there are peers": (
        lambda s: as_one(*(on(number, predict(s, "b", 2)) for number in range(1, 5))),
        ProtocolError,
        "more peers than the experiment",
    ),
    "of more channels than it fills": (
        lambda s: pb.PeerMessage(predictions=pb.Predictions(channels=[0, 1], prediction=predict(s, "b", 2).prediction)),
        PredictionError,
        "do not fill its shape",
    ),
    "unknown in predictions": (
        lambda s: pb.PeerMessage(predictions=pb.Predictions.FromString(UNKNOWN)),
        ProtocolError,
        "Predictions has fields that are not in the contract",
    ),
    "unknown in predictions' prediction": (
        lambda s: pb.PeerMessage(predictions=pb.Predictions(prediction=pb.Prediction.FromString(UNKNOWN))),
        ProtocolError,
        "Prediction has fields that are not in the contract",
    ),
    "nothing": (lambda _: b"", ProtocolError, "an empty message"),
    "no protobuf": (lambda _: b"\xff\xff\xff\xff hello", ProtocolError, "cannot be read"),
    "a second join": (lambda _: join("b"), ProtocolError, "joined already, as b"),
    "the end too early": (final, ProtocolError, "final metrics before the run's last batch"),
    "goodbye too early": (lambda _: pb.PeerMessage(leave=pb.Leave()), ProtocolError, "without its final metrics"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_guarantee_4_what_is_no_distribution_for_the_batch_is_refused(
    coordinate: Coordinate, settings: Experiment, name: str
) -> None:
    make, kind, words = MALFORMED[name]
    refusal = break_a_run(coordinate, settings, make(settings))
    assert type(refusal) is kind
    assert words in refusal.message
    if kind is PredictionError:
        assert refusal.expected
        assert refusal.got


def test_guarantee_4_a_message_that_is_too_large_is_refused(coordinate: Coordinate, settings: Experiment) -> None:
    live = coordinate(settings, limit=64 * 1024)
    a, b = live.raw(), live.raw()
    a.joins("a"), b.joins("b")
    a.send(predict(settings, "a", 0))
    b.send(changed(probabilities=bytes(100_000))(settings))
    refusal = b.refused()
    assert type(refusal) is ProtocolError
    assert "too large" in refusal.message
    assert "65536" in refusal.message
    assert b.soft_targets() == 0
    again = live.raw()
    again.joins("b", instance="second b")
    honest(live, settings, {"a": a, "b": again}, 0, sent={"a"})


def test_both_sides_have_the_same_limit(settings: Experiment) -> None:
    huge = settings.model_copy(update={"batch_size": 10**9})
    for options in ([*server.OPTIONS, *limits(huge, None)], link.OPTIONS):
        assert dict(options)["grpc.max_receive_message_length"] == codec.MAX_MESSAGE_BYTES
        assert dict(options)["grpc.max_send_message_length"] == codec.MAX_MESSAGE_BYTES


def test_a_long_reason_still_arrives(coordinate: Coordinate, settings: Experiment) -> None:
    """A thousand classes in which nothing is right: the refusal is cut, not lost."""
    live = coordinate(settings)
    wide = fingerprint(np.arange(SAMPLES), 1000)
    a = live.raw()
    a.joins("a", fingerprint=wide)
    position, ids = batch(settings, 0)
    a.send(codec.encode_prediction(position, batch_digest(position, ids), np.full((4, 1000), np.nan, np.float32)))
    refusal = a.refused()
    assert type(refusal) is PredictionError
    assert "row 0 is not finite" in refusal.message
    b = live.raw()
    b.send(join("b" * 100_000, instance="second b"))
    refusal = b.refused()
    assert type(refusal) is MembershipError
    assert refusal.got.startswith("bbb")


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        (predict, ProtocolError, "the first message must be a join"),
        (join("z"), MembershipError, "no such peer"),
        (join(""), MembershipError, "no such peer"),
        (join("a", version=PROTOCOL_VERSION + 1), ProtocolError, "different versions"),
        (join("a", fingerprint=fingerprint(np.arange(1, 11), CLASSES)), AlignmentError, "must be 0, 1, …"),
        (join("a", fingerprint=fingerprint(np.arange(0), CLASSES)), AlignmentError, "must be 0, 1, …"),
        (join("a", fingerprint=fingerprint(np.arange(10), 0)), AlignmentError, "at least two classes"),
        (join("a", fingerprint=fingerprint(np.arange(10), 1)), AlignmentError, "at least two classes"),
    ],
)
def test_the_door_is_kept(coordinate: Coordinate, settings: Experiment, message, kind, words: str) -> None:
    live = coordinate(settings)
    stranger = live.raw()
    stranger.send(message if isinstance(message, pb.PeerMessage) else message(settings, "a", 0))
    refusal = stranger.refused()
    assert type(refusal) is kind
    assert words in refusal.message
    assert stranger.received == []
    a, b = live.raw(), live.raw()
    a.joins("a"), b.joins("b")
    honest(live, settings, {"a": a, "b": b}, 0, sent=set())


@pytest.mark.parametrize("samples", [2**40, 2**63, 2**64 - 1])
def test_a_data_set_larger_than_memory_is_refused_before_it_is_counted(
    coordinate: Coordinate, settings: Experiment, samples: int
) -> None:
    live = coordinate(settings)
    stranger = live.raw()
    message = join("a")
    message.join.fingerprint.samples = samples
    stranger.send(message)
    refusal = stranger.refused()
    assert type(refusal) is AlignmentError
    assert "too many samples" in refusal.message
    assert refusal.got == str(samples)


def test_guarantee_7_metrics_cannot_grow_for_ever(coordinate: Coordinate, settings: Experiment) -> None:
    many = pb.PeerMessage(metrics=pb.Metrics(values={f"weight {i}": 1.0 for i in range(1000)}))
    refusal = break_a_run(coordinate, settings, many)
    assert type(refusal) is ProtocolError
    assert "too many metrics" in refusal.message
