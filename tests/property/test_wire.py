"""Any bytes: a message, or refused; from the first byte to the session nothing else is raised (guarantee 4)."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from coordinator.decoding import event_of
from coordinator.session import Session
from entangled import codec
from entangled.alignment import Position
from entangled.distribution import check, soft_targets
from entangled.errors import PredictionError, RefusedError
from entangled.v1 import exchange_pb2 as pb
from tests.contract.raw import final, join, predict
from tests.support import experiment, raised

SETTINGS = experiment()
VALID = [
    join("a").SerializeToString(),
    predict(SETTINGS, "a", 0).SerializeToString(),
    final(SETTINGS).SerializeToString(),
    pb.PeerMessage(metrics=pb.Metrics(values={"loss": 1.0})).SerializeToString(),
    pb.PeerMessage(leave=pb.Leave(failure="x")).SerializeToString(),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with some bytes changed, left out or put in."""
    wire = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(wire)))
        kind, byte = draw(st.sampled_from(["change", "cut", "insert"])), draw(st.integers(0, 255))
        wire[place : place + (kind != "insert")] = b"" if kind == "cut" else bytes([byte])
    return bytes(wire)


@given(st.lists(st.one_of(st.binary(max_size=60), damaged()), min_size=1, max_size=6))
def test_no_bytes_do_more_than_to_be_refused(messages: list[bytes]) -> None:
    session = Session(SETTINGS, 0.0)
    for wire in (join("a").SerializeToString(), *messages):
        try:
            message = pb.PeerMessage.FromString(wire)
        except DecodeError:
            continue
        error = raised(RefusedError, take_in, session, message)
        assert error is None or error.message
        session.validate()


def take_in(session: Session, message: pb.PeerMessage) -> None:
    """What the service does with a message."""
    codec.refuse_unknown(message)
    session.handle(event_of(1, message.WhichOneof("kind"), message), 0.0)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_tensor_is_what_its_shape_says_or_refused(data: bytes, rows: int, classes: int) -> None:
    message = pb.Prediction(rows=rows, classes=classes, probabilities=data)
    if rows * classes * 4 == len(data):
        assert codec.decode_prediction(message)[2].shape == (rows, classes)
    else:
        with pytest.raises(PredictionError):
            codec.decode_prediction(message)


SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays.arrays(np.float32, SHAPES, elements=FLOATS))
def test_any_float32_survives_the_wire_to_the_bit(values: np.ndarray) -> None:
    wire = codec.encode_prediction(Position(1, 2), bytes(16), values).SerializeToString()
    _, _, back = codec.decode_prediction(pb.PeerMessage.FromString(wire).prediction)
    assert back.tobytes() == values.tobytes()
    assert back.shape == values.shape


@given(arrays.arrays(np.float32, SHAPES, elements=FLOATS))
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_check_passes_distributions_and_nothing_else(values: np.ndarray) -> None:
    good = all(np.isfinite(row).all() and (row >= 0).all() and abs(sum(row.tolist()) - 1) <= 1e-3 for row in values)
    error = raised(PredictionError, check, values, *values.shape)
    assert (error is None) == good
    assert error is None or error.message.startswith("row ")


@given(st.integers(2, 6), st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 12))
def test_soft_targets_of_distributions_are_distributions(peers: int, seed: int, rows: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    predictions = list(random.dirichlet(np.full(classes, 0.1), (peers, rows)).astype(np.float32))
    for own, target in zip(predictions, soft_targets(predictions), strict=True):
        check(target, rows, classes)
        total = np.sum(predictions, axis=0, dtype=np.float64)
        np.testing.assert_allclose(target * (peers - 1) + own, total, atol=1e-5)
