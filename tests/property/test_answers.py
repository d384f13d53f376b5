"""Whatever a coordinator sends, a peer takes it for what it should be, or ends with an error of ours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangled import codec
from entangled.alignment import Position, batch_digest, check_order
from entangled.errors import AlignmentError, EntangledError, PredictionError, ProtocolError, RunFailedError
from entangled.experiment_file import dumps, loads
from entangled.participation.client import CoordinatorClient
from entangled.participation.seam import SoftTarget
from entangled.status import REFUSAL_KEY, from_status
from entangled.v1 import exchange_pb2 as pb
from tests.scripted import WELCOME, coordinator
from tests.support import CLASSES, SAMPLES, data, experiment, prediction, raised

SETTINGS = experiment()
START, IDS = Position(0, 0), np.arange(4)
TARGET = codec.encode_soft_target(START, batch_digest(START, IDS), 0.5, prediction("b", START, len(IDS)))
VALID = [m.SerializeToString() for m in (TARGET, pb.CoordinatorMessage(durable=pb.Durable(complete=1)))]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with some bytes changed, left out or put in."""
    wire = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        place, byte = draw(st.integers(0, len(wire))), draw(st.binary(max_size=2))
        wire[place : place + draw(st.integers(0, 2))] = byte
    return bytes(wire)


def exchanged(address: str, wires: list[bytes]) -> SoftTarget:
    """What a peer gets from a coordinator that welcomes it, answers its prediction with `wires`, and ends the run."""

    def say(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        next(requests)
        yield WELCOME
        next(requests)
        yield from wires
        raise RunFailedError("over")

    def over(_: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        raise RunFailedError("over")
        yield b""

    with coordinator(address, SETTINGS, itertools.chain([say], itertools.repeat(over))):
        peer = CoordinatorClient(address, "a", 60.0)
        try:
            peer.join(data())
            return peer.exchange(START, IDS, prediction("a", START, len(IDS)))
        finally:
            peer.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(damaged(), max_size=4))
def test_guarantee_1_a_peer_gets_a_soft_target_of_its_batch_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, wires: list[bytes]
) -> None:
    try:
        target = exchanged(f"unix:{tmp_path_factory.mktemp('x')}/x.sock", wires)
    except EntangledError as error:
        assert error.message  # noqa: PT017  # either is right
    else:
        assert target.probabilities.shape == (len(IDS), CLASSES)
        assert np.isfinite(target.weight)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rows": 1, "classes": 12}, PredictionError),
        ({"rows": 3}, PredictionError),
        ({"weight": float("nan")}, PredictionError),
        ({"batch_digest": bytes(16)}, AlignmentError),
        ({"step": 1}, AlignmentError),
    ],
    ids=str,
)
def test_a_soft_target_that_is_none_ends_the_peer(
    tmp_path: Path, changes: dict[str, Any], kind: type[EntangledError]
) -> None:
    message = pb.CoordinatorMessage.FromString(VALID[0])
    for name, value in changes.items():
        setattr(message.soft_target, name, value)
    with pytest.raises(kind):
        exchanged(f"unix:{tmp_path}/x.sock", [message.SerializeToString()])


def test_what_is_no_message_ends_the_peer(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="is no message"):
        exchanged(f"unix:{tmp_path}/x.sock", [b"\xff\xff"])


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12), max_size=3))
def test_an_order_is_a_permutation_or_refused(chunks: list[list[int]]) -> None:
    order = codec.decode_order([pb.SampleOrderChunk(sample_ids=ids) for ids in chunks])
    error = raised(EntangledError, check_order, order, SAMPLES)
    assert (error is None) == (sorted(order.tolist()) == list(range(SAMPLES)))


def test_the_right_order_is_none_too_strange() -> None:
    check_order(np.random.default_rng(0).permutation(SAMPLES), SAMPLES)


@given(st.sampled_from(list(grpc.StatusCode)), st.text(max_size=20), st.binary(max_size=40))
def test_any_status_is_an_error_of_ours(code: grpc.StatusCode, details: str, trailing: bytes) -> None:
    assert isinstance(from_status(code, details, [(REFUSAL_KEY, trailing), ("other", "text")]), EntangledError)


@given(st.data())
def test_any_text_as_the_coordinators_experiment(draw: st.DataObject) -> None:
    text = dumps(SETTINGS)
    place = draw.draw(st.integers(0, len(text)))
    changed = text[:place] + draw.draw(st.text(max_size=5)) + text[place + draw.draw(st.integers(0, 9)) :]
    error = raised(EntangledError, loads, changed, "the experiment of host:1")
    assert error is None or "the experiment of host:1" in str(error)
