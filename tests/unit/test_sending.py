"""What is sent: large messages in one copy, small ones together, each as protobuf would write it."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from entangled import codec, sending
from entangled.alignment import Position
from entangled.distribution import transmitted
from entangled.errors import PredictionError
from entangled.v1 import exchange_pb2 as pb

POSITION, DIGEST = Position(3, 17), bytes(range(16))
VALUES = np.random.default_rng(0).dirichlet(np.ones(5), 4).astype(np.float32)
LARGE = np.random.default_rng(1).dirichlet(np.ones(300), 100).astype(np.float32)


@pytest.mark.parametrize("channel", [0, 1, 300])
@pytest.mark.parametrize("values", [LARGE, LARGE[:, ::-1], LARGE.astype(">f4")], ids=["plain", "view", "big-endian"])
def test_a_large_message_is_written_as_protobuf_would(values, channel: int) -> None:
    """Byte for byte, but for the channel's place, and whatever becomes of the array then."""
    values = values.copy("K")
    for encode, write, kind in (
        (codec.encode_prediction, sending.write_prediction, pb.PeerMessage),
        (codec.encode_soft_target, sending.write_soft_target, pb.CoordinatorMessage),
    ):
        about = (POSITION, DIGEST) if kind is pb.PeerMessage else (POSITION, DIGEST, 0.25)
        plain, written = encode(*about, values), write(*about, values.copy("K"))
        assert isinstance(written, sending.Written)
        assert written.SerializeToString() == plain.SerializeToString()
        assert written.ByteSize() == plain.ByteSize()
        plain.channel = written.channel = channel
        assert kind.FromString(written.SerializeToString()) == plain


def test_a_large_message_keeps_what_it_was_made_of() -> None:
    values = LARGE.copy()
    written = sending.write_prediction(POSITION, DIGEST, values)
    values[:] = 0
    back = pb.PeerMessage.FromString(written.SerializeToString())
    assert codec.decode_prediction(back.prediction)[2].tobytes() == LARGE.tobytes()


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16, codec.SPARSE])
@pytest.mark.parametrize("values", [VALUES, LARGE], ids=["small", "large"])
def test_what_is_not_large_in_float32_is_left_to_protobuf(values, encoding: codec.Encoding) -> None:
    message = sending.write_prediction(POSITION, DIGEST, values, encoding)
    assert isinstance(message, sending.Written) == (values is LARGE and encoding == codec.FLOAT32)


@pytest.mark.parametrize("channel", [0, 7, 70_000])
@pytest.mark.parametrize("position", [Position(0, 0), POSITION])
@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
@pytest.mark.parametrize("values", [VALUES, LARGE], ids=["small", "large"])
def test_the_size_of_a_message_is_protobufs(values, encoding: codec.Encoding, position: Position, channel: int) -> None:
    message = codec.encode_prediction(position, DIGEST, values, encoding)
    message.channel = channel
    assert sending.size(message, values, encoding) == message.ByteSize()


def test_a_large_message_is_sent_alone_and_in_its_place() -> None:
    small = [pb.PeerMessage(channel=number, heartbeat=pb.Heartbeat()) for number in (1, 2, 3, 4)]
    large = sending.write_prediction(POSITION, DIGEST, LARGE)
    large.channel = 5
    waiting, sent = deque([*small[:2], large, *small[2:]]), list[sending.FromPeer]()
    while waiting:
        sent.append(sending.next_spoken(waiting, sending.bundle_of_peers))
    assert sent == [sending.bundle_of_peers(small[:2]), large, sending.bundle_of_peers(small[2:])]


def waiting_on_channels(values: list[np.ndarray], encoding: codec.Encoding, *digests: bytes) -> deque[sending.FromPeer]:
    found: deque[sending.FromPeer] = deque()
    for channel, (one, digest) in enumerate(zip(values, digests, strict=True), 1):
        found.append(sending.write_prediction(POSITION, digest, one, encoding))
        found[-1].channel = channel
    return found


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
def test_predictions_for_one_batch_that_wait_together_are_one_message(encoding: codec.Encoding) -> None:
    values = list(np.random.default_rng(2).dirichlet(np.ones(5), (3, 4)).astype(np.float32))
    waiting = waiting_on_channels(values, encoding, *[DIGEST] * 3)
    message = pb.PeerMessage.FromString(sending.next_spoken(waiting, sending.bundle_of_peers).SerializeToString())
    assert not waiting
    assert list(message.predictions.channels) == [1, 2, 3]
    position, digest, several = codec.decode_predictions(message.predictions, encoding)
    assert (position, digest) == (POSITION, DIGEST)
    name = "float16" if encoding == codec.FLOAT16 else "float32"
    assert b"".join(one.tobytes() for one in several) == b"".join(transmitted(one, name).tobytes() for one in values)
    message.predictions.channels.pop()
    with pytest.raises(PredictionError, match="do not fill its shape"):
        codec.decode_predictions(message.predictions, encoding)


def test_predictions_for_several_batches_or_that_are_sparse_are_a_bundle() -> None:
    other = bytes(16)
    waiting = waiting_on_channels([VALUES] * 4, codec.FLOAT32, DIGEST, DIGEST, other, DIGEST)
    message = sending.next_spoken(waiting, sending.bundle_of_peers)
    assert [list(one.predictions.channels) or one.channel for one in message.bundle.messages] == [[1, 2], 3, 4]
    first, *single = message.bundle.messages
    said = [first.predictions.prediction, *(one.prediction for one in single)]
    assert [one.batch_digest for one in said] == [DIGEST, other, DIGEST]
    waiting = waiting_on_channels([VALUES] * 3, codec.FLOAT32, DIGEST, DIGEST, DIGEST)
    waiting[2].channel = 1
    message = sending.next_spoken(waiting, sending.bundle_of_peers)
    assert [one.channel for one in message.bundle.messages] == [
        1,
        2,
        1,
    ]  # who repeats itself does so in its own message
    waiting = waiting_on_channels([VALUES] * 2, codec.SPARSE, DIGEST, DIGEST)
    message = sending.next_spoken(waiting, sending.bundle_of_peers)
    assert [one.channel for one in message.bundle.messages] == [1, 2]
    several = pb.Predictions(channels=[1, 2], prediction=message.bundle.messages[0].prediction)
    with pytest.raises(PredictionError, match="expected 1 peer; got 2 peers"):
        codec.decode_predictions(several, codec.SPARSE)


@pytest.mark.parametrize("channel", [0, 70_000])
@pytest.mark.parametrize("position", [Position(0, 0), Position(2**32 - 1, 2**32 - 1)])
def test_a_small_message_is_as_protobuf_makes_it(position: Position, channel: int) -> None:
    plain, written = (
        codec.encode_prediction(position, DIGEST, VALUES),
        sending.write_prediction(position, DIGEST, VALUES),
    )
    plain.channel = written.channel = channel
    assert written.SerializeToString() == plain.SerializeToString()
    assert plain.ByteSize() <= written.ByteSize()


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
@pytest.mark.parametrize("classes", [5, 300, 5000], ids=["small", "a few in a message", "large"])
def test_soft_targets_of_several_are_as_few_messages_as_may_be(classes: int, encoding: codec.Encoding) -> None:
    values = list(np.random.default_rng(3).dirichlet(np.ones(classes), (9, 10)).astype(np.float32))
    channels = list(range(1, 10))
    messages = list(sending.write_soft_targets(channels, POSITION, DIGEST, 0.25, values, encoding))
    found: dict[int, codec.SoftTarget] = {}
    for written in messages:
        message = pb.CoordinatorMessage.FromString(written.SerializeToString())
        if message.HasField("soft_targets"):
            assert message.ByteSize() < sending.BUNDLE_BYTES + 100
            *common, several = codec.decode_soft_targets(message.soft_targets)
            for channel, one in zip(message.soft_targets.channels, several, strict=True):
                found[channel] = codec.SoftTarget(*common, one)
        else:
            found[message.channel] = codec.decode_soft_target(message.soft_target)
    assert list(found) == channels
    assert {(t.position, t.digest, t.weight) for t in found.values()} == {(POSITION, DIGEST, 0.25)}
    assert [t.probabilities.tobytes() for t in found.values()] == [one.tobytes() for one in values]
    assert len(messages) == (9 if encoding == codec.FLOAT16 else {5: 1, 300: 3, 5000: 9}[classes])
