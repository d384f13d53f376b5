"""Wire messages and back: nothing is lost, nothing unknown or malformed gets through (guarantee 4)."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from entangled import codec
from entangled.alignment import Position
from entangled.distribution import check, transmitted
from entangled.errors import PredictionError, ProtocolError
from entangled.v1 import exchange_pb2 as pb
from tests.support import data

POSITION, DIGEST = Position(3, 17), bytes(range(16))
VALUES = np.random.default_rng(0).dirichlet(np.ones(5), 4).astype(np.float32)
UNKNOWN = b"\xfa\x06\x03abc"  # field 111, three bytes


def test_a_prediction_survives_the_wire_to_the_bit() -> None:
    wire = codec.encode_prediction(POSITION, DIGEST, VALUES).SerializeToString()
    message = pb.PeerMessage.FromString(wire)
    position, digest, probabilities = codec.decode_prediction(message.prediction)
    assert (position, digest) == (POSITION, DIGEST)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (4, 5)
    assert probabilities.tobytes() == VALUES.tobytes()


LARGE = np.random.default_rng(1).dirichlet(np.ones(300), 100).astype(np.float32)


@pytest.mark.parametrize("channel", [0, 1, 300])
@pytest.mark.parametrize("values", [LARGE, LARGE[:, ::-1], LARGE.astype(">f4")], ids=["plain", "view", "big-endian"])
def test_a_large_message_is_written_as_protobuf_would(values, channel: int) -> None:
    """Byte for byte, but for the channel's place, and whatever becomes of the array then."""
    values = values.copy("K")
    for encode, write, kind in (
        (codec.encode_prediction, codec.write_prediction, pb.PeerMessage),
        (codec.encode_soft_target, codec.write_soft_target, pb.CoordinatorMessage),
    ):
        about = (POSITION, DIGEST) if kind is pb.PeerMessage else (POSITION, DIGEST, 0.25)
        plain, written = encode(*about, values), write(*about, values.copy("K"))
        assert isinstance(written, codec.Written)
        assert written.SerializeToString() == plain.SerializeToString()
        assert written.ByteSize() == plain.ByteSize()
        plain.channel = written.channel = channel
        assert kind.FromString(written.SerializeToString()) == plain


def test_a_large_message_keeps_what_it_was_made_of() -> None:
    values = LARGE.copy()
    written = codec.write_prediction(POSITION, DIGEST, values)
    values[:] = 0
    back = pb.PeerMessage.FromString(written.SerializeToString())
    assert codec.decode_prediction(back.prediction)[2].tobytes() == LARGE.tobytes()


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16, codec.SPARSE])
@pytest.mark.parametrize("values", [VALUES, LARGE], ids=["small", "large"])
def test_what_is_not_large_in_float32_is_left_to_protobuf(values, encoding: codec.Encoding) -> None:
    message = codec.write_prediction(POSITION, DIGEST, values, encoding)
    assert isinstance(message, codec.Written) == (values is LARGE and encoding == codec.FLOAT32)


@pytest.mark.parametrize("channel", [0, 7, 70_000])
@pytest.mark.parametrize("position", [Position(0, 0), POSITION])
@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
@pytest.mark.parametrize("values", [VALUES, LARGE], ids=["small", "large"])
def test_the_size_of_a_message_is_protobufs(values, encoding: codec.Encoding, position: Position, channel: int) -> None:
    message = codec.encode_prediction(position, DIGEST, values, encoding)
    message.channel = channel
    assert codec.size(message, values, encoding) == message.ByteSize()


def test_a_large_message_is_sent_alone_and_in_its_place() -> None:
    small = [pb.PeerMessage(channel=number, heartbeat=pb.Heartbeat()) for number in (1, 2, 3, 4)]
    large = codec.write_prediction(POSITION, DIGEST, LARGE)
    large.channel = 5
    waiting, sent = deque([*small[:2], large, *small[2:]]), list[codec.FromPeer]()
    while waiting:
        sent.append(codec.next_spoken(waiting, codec.bundle_of_peers))
    assert sent == [codec.bundle_of_peers(small[:2]), large, codec.bundle_of_peers(small[2:])]


def waiting_on_channels(values: list[np.ndarray], encoding: codec.Encoding, *digests: bytes) -> deque[codec.FromPeer]:
    found: deque[codec.FromPeer] = deque()
    for channel, (one, digest) in enumerate(zip(values, digests, strict=True), 1):
        found.append(codec.write_prediction(POSITION, digest, one, encoding))
        found[-1].channel = channel
    return found


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
def test_predictions_for_one_batch_that_wait_together_are_one_message(encoding: codec.Encoding) -> None:
    values = list(np.random.default_rng(2).dirichlet(np.ones(5), (3, 4)).astype(np.float32))
    waiting = waiting_on_channels(values, encoding, *[DIGEST] * 3)
    message = pb.PeerMessage.FromString(codec.next_spoken(waiting, codec.bundle_of_peers).SerializeToString())
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
    message = codec.next_spoken(waiting, codec.bundle_of_peers)
    assert [list(one.predictions.channels) or one.channel for one in message.bundle.messages] == [[1, 2], 3, 4]
    first, *single = message.bundle.messages
    said = [first.predictions.prediction, *(one.prediction for one in single)]
    assert [one.batch_digest for one in said] == [DIGEST, other, DIGEST]
    waiting = waiting_on_channels([VALUES] * 2, codec.SPARSE, DIGEST, DIGEST)
    message = codec.next_spoken(waiting, codec.bundle_of_peers)
    assert [one.channel for one in message.bundle.messages] == [1, 2]
    several = pb.Predictions(channels=[1, 2], prediction=message.bundle.messages[0].prediction)
    with pytest.raises(PredictionError, match="expected 1 peer; got 2 peers"):
        codec.decode_predictions(several, codec.SPARSE)


@pytest.mark.parametrize("channel", [0, 70_000])
@pytest.mark.parametrize("position", [Position(0, 0), Position(2**32 - 1, 2**32 - 1)])
def test_a_small_message_is_as_protobuf_makes_it(position: Position, channel: int) -> None:
    plain, written = codec.encode_prediction(position, DIGEST, VALUES), codec.write_prediction(position, DIGEST, VALUES)
    plain.channel = written.channel = channel
    assert written.SerializeToString() == plain.SerializeToString()
    assert plain.ByteSize() <= written.ByteSize()


@pytest.mark.parametrize("encoding", [codec.FLOAT32, codec.FLOAT16])
@pytest.mark.parametrize("classes", [5, 300, 5000], ids=["small", "a few in a message", "large"])
def test_soft_targets_of_several_are_as_few_messages_as_may_be(classes: int, encoding: codec.Encoding) -> None:
    values = list(np.random.default_rng(3).dirichlet(np.ones(classes), (9, 10)).astype(np.float32))
    channels = list(range(1, 10))
    messages = list(codec.write_soft_targets(channels, POSITION, DIGEST, 0.25, values, encoding))
    found: dict[int, codec.SoftTarget] = {}
    for written in messages:
        message = pb.CoordinatorMessage.FromString(written.SerializeToString())
        if message.HasField("soft_targets"):
            assert message.ByteSize() < codec.BUNDLE_BYTES + 100
            *common, several = codec.decode_soft_targets(message.soft_targets)
            for channel, one in zip(message.soft_targets.channels, several, strict=True):
                found[channel] = codec.SoftTarget(*common, one)
        else:
            found[message.channel] = codec.decode_soft_target(message.soft_target)
    assert list(found) == channels
    assert {(t.position, t.digest, t.weight) for t in found.values()} == {(POSITION, DIGEST, 0.25)}
    assert [t.probabilities.tobytes() for t in found.values()] == [one.tobytes() for one in values]
    assert len(messages) == (9 if encoding == codec.FLOAT16 else {5: 1, 300: 3, 5000: 9}[classes])


@pytest.mark.parametrize("encoding", [codec.FLOAT16, codec.SPARSE])
def test_a_prediction_may_be_written_shorter(encoding: codec.Encoding) -> None:
    classes = 50_000
    flat = np.full((2, classes), 1 / classes, np.float32)
    few = np.zeros((2, classes), np.float32)
    few[0, 7], few[1, [3, classes - 1]] = 1.0, 0.5
    values = np.concatenate([flat, few]) if encoding == codec.FLOAT16 else few
    message = codec.encode_prediction(POSITION, DIGEST, values, encoding)
    assert message.ByteSize() < values.nbytes / 1.9
    decoded = codec.decode_prediction(message.prediction, encoding)[2]
    check(decoded, *values.shape)  # however small the probabilities are
    name = "float16" if encoding == codec.FLOAT16 else "sparse"
    assert decoded.tobytes() == transmitted(values, name).tobytes()


def test_a_prediction_in_another_encoding_than_the_experiments_is_refused() -> None:
    message = codec.encode_prediction(POSITION, DIGEST, VALUES, codec.FLOAT16)
    with pytest.raises(PredictionError, match=r"expected float32; got float16"):
        codec.decode_prediction(message.prediction)


def test_a_soft_target_that_an_encoding_would_round_is_written_in_full() -> None:
    mean = np.array([[1 / 3, 2 / 3]], np.float32)
    message = codec.encode_soft_target(POSITION, DIGEST, 0.5, mean, codec.FLOAT16)
    assert codec.decode_soft_target(message.soft_target).probabilities.tobytes() == mean.tobytes()


@pytest.mark.parametrize(
    ("rows", "numbers", "values"),
    [
        (2, [1, 1, 0, 4], [1.0, 1.0]),  # a class that there is not
        (2, [2, 0, 1, 0], [0.5, 0.5]),  # classes that do not ascend
        (2, [2, 0, 1, 1], [0.5, 0.5]),  # one class twice
        (2, [1, 1, 0], [1.0, 1.0]),
        (2, [1, 2, 0, 1], [1.0, 1.0]),
        (2, [2**32 - 1, 3, 0, 1], [1.0, 1.0]),
        (3, [1, 1], [1.0, 1.0]),
        (2**31, [], []),
    ],
)
def test_a_sparse_prediction_that_does_not_fit_is_refused(rows: int, numbers: list[int], values: list[float]) -> None:
    message = pb.Prediction(
        rows=rows,
        classes=3,
        probabilities=np.array(values, "<f4").tobytes(),
        encoding=codec.SPARSE,
        classes_of=np.array(numbers, "<u4").tobytes(),
    )
    with pytest.raises(PredictionError, match="sparse"):
        codec.decode_prediction(message, codec.SPARSE)


@pytest.mark.parametrize("values", [np.asfortranarray(VALUES), VALUES.astype(np.float64), VALUES[::-1][::-1]])
def test_how_a_prediction_lies_in_memory_does_not_matter(values: np.ndarray) -> None:
    message = codec.encode_prediction(POSITION, DIGEST, values)
    assert message.prediction.probabilities == VALUES.tobytes()


def test_a_soft_target_survives_the_wire_to_the_bit() -> None:
    said = POSITION, DIGEST, float(np.float32(0.05))
    message = pb.CoordinatorMessage.FromString(codec.encode_soft_target(*said, VALUES).SerializeToString())
    back = codec.decode_soft_target(message.soft_target)
    assert back[:3] == said
    assert back.probabilities.tobytes() == VALUES.tobytes()


def test_a_fingerprint_survives_the_wire() -> None:
    message = pb.Fingerprint.FromString(codec.encode_fingerprint(data()).SerializeToString())
    assert codec.decode_fingerprint(message) == data()


@pytest.mark.parametrize("samples", [1, codec.ORDER_CHUNK, codec.ORDER_CHUNK + 1, 2 * codec.ORDER_CHUNK + 5])
def test_an_order_survives_the_wire_in_chunks(samples: int) -> None:
    order = np.random.default_rng(0).permutation(samples)
    chunks = [pb.SampleOrderChunk.FromString(c.SerializeToString()) for c in codec.encode_order(order)]
    assert len(chunks) == -(-samples // codec.ORDER_CHUNK)
    assert max(len(c.sample_ids) for c in chunks) <= codec.ORDER_CHUNK
    back = codec.decode_order(chunks)
    assert back.dtype == np.int64
    assert back.tolist() == order.tolist()


@pytest.mark.parametrize(
    ("rows", "classes", "size"),
    [(4, 5, 79), (4, 5, 81), (4, 5, 0), (5, 4, 84), (0, 5, 80), (4, 0, 80), (2**32 - 1, 2**32 - 1, 80)],
)
def test_guarantee_4_a_tensor_that_does_not_fill_its_shape_is_refused(rows: int, classes: int, size: int) -> None:
    message = pb.Prediction(rows=rows, classes=classes, probabilities=b"\0" * size)
    with pytest.raises(PredictionError, match="do not fill its shape") as refused:
        codec.decode_prediction(message)
    assert refused.value.expected == f"{rows} × {classes} × 4 = {rows * classes * 4} bytes"
    assert refused.value.got == f"{size} bytes"
    with pytest.raises(PredictionError, match="do not fill its shape"):
        codec.decode_soft_target(pb.SoftTarget(rows=rows, classes=classes, probabilities=b"\0" * size))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, short enough for one-byte tag and length."""
    return bytes([number << 3 | 2, len(payload)]) + payload


@pytest.mark.parametrize(
    ("wire", "where"),
    [
        (UNKNOWN, "entangled.v1.PeerMessage"),
        (field(1, b"") + UNKNOWN, "entangled.v1.PeerMessage"),
        (field(1, UNKNOWN), "entangled.v1.Join"),
        (field(1, field(5, UNKNOWN)), "entangled.v1.Fingerprint"),
        (field(2, UNKNOWN), "entangled.v1.Prediction"),
        (field(3, UNKNOWN), "entangled.v1.Metrics"),
        (field(4, UNKNOWN), "entangled.v1.Leave"),
    ],
)
def test_guarantee_4_an_unknown_field_is_refused_wherever_it_is(wire: bytes, where: str) -> None:
    with pytest.raises(ProtocolError, match=f"{where} has fields that are not in the contract") as refused:
        codec.refuse_unknown(pb.PeerMessage.FromString(wire))
    assert refused.value.got == "field 111"


def test_known_fields_pass() -> None:
    codec.refuse_unknown(codec.encode_prediction(POSITION, DIGEST, VALUES))
    codec.refuse_unknown(pb.PeerMessage(join=pb.Join(peer="a", fingerprint=codec.encode_fingerprint(data()))))
    codec.refuse_unknown(pb.PeerMessage(metrics=pb.Metrics(values={"loss": 1.0})))
    codec.refuse_unknown(pb.PeerMessage(leave=pb.Leave()))
