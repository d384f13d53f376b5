"""Wire messages and back: nothing is lost, nothing unknown or malformed gets through (guarantee 4)."""

from __future__ import annotations

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
