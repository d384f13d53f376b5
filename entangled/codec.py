"""Wire messages <-> the types of the pure modules: the only place that knows both.

Decoding is where unknown fields and malformed tensors are refused (guarantee 4), so that nothing behind it has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import Probabilities
from entangled.errors import PredictionError, ProtocolError
from entangled.v1 import exchange_pb2 as pb

FLOAT = np.dtype("<f4")

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Upper bound of one message: a batch of 1024 × 65,536 float32."""

ORDER_CHUNK = 65_536
"""Sample ids in one message."""


class Prediction(NamedTuple):
    """A peer's prediction for a batch, as it came."""

    position: Position
    digest: bytes
    probabilities: Probabilities
    size: int
    """Bytes on the wire."""


class SoftTarget(NamedTuple):
    """What a peer gets back for a batch."""

    position: Position
    digest: bytes
    weight: float
    """λ in force."""
    probabilities: Probabilities


def refuse_unknown(message: Message) -> None:
    """Raise ProtocolError if `message` or the message set in it has fields that this version does not know."""
    for part in [message, *(value for field, value in message.ListFields() if _is_single_message(field))]:
        unknown = UnknownFieldSet(part)
        if len(unknown):
            raise ProtocolError(
                f"{part.DESCRIPTOR.full_name} has fields that are not in the contract",
                expected="only known fields",
                got="field " + ", ".join(str(field.field_number) for field in unknown),
            )
        if part is not message:
            for field, value in part.ListFields():
                if _is_single_message(field):
                    refuse_unknown(value)


def _is_single_message(field: object) -> bool:
    return field.message_type is not None and not field.is_repeated  # pyright: ignore[reportAttributeAccessIssue]


def encode_prediction(position: Position, digest: bytes, probabilities: Probabilities) -> pb.PeerMessage:
    """A `(rows, classes)` prediction as a message."""
    rows, classes = probabilities.shape
    return pb.PeerMessage(
        prediction=pb.Prediction(
            epoch=position.epoch,
            step=position.step,
            batch_digest=digest,
            rows=rows,
            classes=classes,
            probabilities=np.ascontiguousarray(probabilities, dtype=FLOAT).tobytes(),
        )
    )


def decode_prediction(message: pb.Prediction, size: int) -> Prediction:
    """The prediction in a message; a tensor whose bytes do not fill its shape raises PredictionError."""
    probabilities = _tensor(message.probabilities, message.rows, message.classes)
    return Prediction(Position(message.epoch, message.step), message.batch_digest, probabilities, size)


def encode_soft_target(target: SoftTarget) -> pb.CoordinatorMessage:
    """A soft target as a message."""
    rows, classes = target.probabilities.shape
    return pb.CoordinatorMessage(
        soft_target=pb.SoftTarget(
            epoch=target.position.epoch,
            step=target.position.step,
            batch_digest=target.digest,
            weight=target.weight,
            rows=rows,
            classes=classes,
            probabilities=np.ascontiguousarray(target.probabilities, dtype=FLOAT).tobytes(),
        )
    )


def decode_soft_target(message: pb.SoftTarget) -> SoftTarget:
    """The soft target in a message."""
    probabilities = _tensor(message.probabilities, message.rows, message.classes)
    return SoftTarget(Position(message.epoch, message.step), message.batch_digest, message.weight, probabilities)


def _tensor(data: bytes, rows: int, classes: int) -> Probabilities:
    if rows * classes * FLOAT.itemsize != len(data):
        raise PredictionError(
            "a prediction's bytes do not fill its shape",
            expected=f"{rows} × {classes} × {FLOAT.itemsize} = {rows * classes * FLOAT.itemsize} bytes",
            got=f"{len(data)} bytes",
        )
    return np.frombuffer(data, dtype=FLOAT).reshape(rows, classes)


def encode_fingerprint(fingerprint: Fingerprint) -> pb.Fingerprint:
    """A fingerprint as a message."""
    return pb.Fingerprint(
        samples=fingerprint.samples,
        classes=fingerprint.classes,
        ids_digest=fingerprint.ids_digest,
        contents_digest=fingerprint.contents_digest,
    )


def decode_fingerprint(message: pb.Fingerprint) -> Fingerprint:
    """The fingerprint in a message."""
    return Fingerprint(message.samples, message.classes, message.ids_digest, message.contents_digest)


def encode_order(order: SampleIds) -> Iterator[pb.SampleOrderChunk]:
    """A sample order as messages, made as they are asked for: all at once, they would weigh more than the order."""
    for start in range(0, len(order), ORDER_CHUNK):
        yield pb.SampleOrderChunk(sample_ids=order[start : start + ORDER_CHUNK])


def decode_order(chunks: list[pb.SampleOrderChunk]) -> SampleIds:
    """The sample order in messages, int64."""
    return np.concatenate([np.zeros(0, np.int64), *(np.fromiter(c.sample_ids, np.int64) for c in chunks)])
