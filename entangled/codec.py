"""Wire messages <-> the types of the pure modules: the only place that knows both.

Decoding is where unknown fields and malformed tensors are refused (guarantee 4), so that nothing behind it has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import HALF_SCALE, Probabilities, transmitted
from entangled.errors import PredictionError, ProtocolError
from entangled.v1 import exchange_pb2 as pb

FLOAT = np.dtype("<f4")

_HALF, _NUMBER = np.dtype("<f2"), np.dtype("<u4")

Encoding = pb.Encoding
FLOAT32, FLOAT16, SPARSE = pb.ENCODING_FLOAT32_UNSPECIFIED, pb.ENCODING_FLOAT16, pb.ENCODING_SPARSE
ENCODINGS = {"float32": FLOAT32, "float16": FLOAT16, "sparse": SPARSE}

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Upper bound of one message: a batch of 1024 × 65,536 float32."""

ORDER_CHUNK = 65_536
"""Sample ids in one message."""


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


def unbundled(message: pb.PeerMessage) -> Sequence[pb.PeerMessage]:
    """The messages in a message.

    Raises:
        ProtocolError: there is a bundle in a bundle, or one has fields that this version does not know.
    """
    if _is_known_prediction(message):
        return (message,)
    refuse_unknown(message)
    if not message.HasField("bundle"):
        return (message,)
    for one in message.bundle.messages:
        if one.HasField("bundle"):
            raise ProtocolError("a bundle of bundles", expected="a bundle of messages", got="a bundle")
        if not _is_known_prediction(one):
            refuse_unknown(one)
    return message.bundle.messages


def _is_known_prediction(message: pb.PeerMessage) -> bool:
    """Whether it is a prediction or several, as most are, with known fields alone; quicker than `refuse_unknown`."""
    if message.HasField("prediction"):
        said = message.prediction
    elif message.HasField("predictions") and not len(UnknownFieldSet(message.predictions)):
        said = message.predictions.prediction
    else:
        return False
    return not len(UnknownFieldSet(message)) and not len(UnknownFieldSet(said))


def _is_single_message(field: object) -> bool:
    return field.message_type is not None and not field.is_repeated  # pyright: ignore[reportAttributeAccessIssue]


def encoding(name: Literal["float32", "float16", "sparse"]) -> Encoding:
    """The encoding of that name in an experiment."""
    return ENCODINGS[name]


def encode_prediction(
    position: Position, digest: bytes, probabilities: Probabilities, encoding: Encoding = FLOAT32
) -> pb.PeerMessage:
    """A `(rows, classes)` prediction as a message; in float16 it is rounded."""
    message = pb.PeerMessage()
    _fill(message.prediction, position, digest, probabilities, encoding)
    return message


def decode_prediction(message: pb.Prediction, encoding: Encoding = FLOAT32) -> tuple[Position, bytes, Probabilities]:
    """The prediction in a message: for which batch, that batch's digest, and the `(rows, classes)` probabilities.

    Raises:
        PredictionError: it is in another encoding than the experiment's, or its bytes do not fill its shape.
    """
    if message.encoding != encoding:
        raise _wrong_encoding(message, encoding)
    (probabilities,) = _tensors(message, 1)
    return Position(message.epoch, message.step), message.batch_digest, probabilities


def decode_predictions(
    message: pb.Predictions, encoding: Encoding = FLOAT32
) -> tuple[Position, bytes, Sequence[Probabilities]]:
    """The same of several peers: the probabilities of each, in the order of the channels."""
    said = message.prediction
    if said.encoding != encoding:
        raise _wrong_encoding(said, encoding)
    return Position(said.epoch, said.step), said.batch_digest, _tensors(said, len(message.channels))


def _wrong_encoding(message: pb.Prediction, encoding: Encoding) -> PredictionError:
    names = {number: name for name, number in ENCODINGS.items()}
    return PredictionError(
        "a prediction is in another encoding than the experiment's",
        expected=names[encoding],
        got=names.get(message.encoding, str(message.encoding)),
    )


def encode_soft_target(
    position: Position, digest: bytes, weight: float, probabilities: Probabilities, encoding: Encoding = FLOAT32
) -> pb.CoordinatorMessage:
    """A soft target as a message; in `encoding` if that loses nothing, else in float32."""
    if encoding == FLOAT16 and not np.array_equal(transmitted(probabilities, "float16"), probabilities):
        encoding = FLOAT32
    message = pb.CoordinatorMessage()
    target = message.soft_target
    target.weight = weight
    _fill(target, position, digest, probabilities, encoding)
    return message


def _fill(
    message: pb.Prediction | pb.SoftTarget,
    position: Position,
    digest: bytes,
    probabilities: Probabilities,
    encoding: Encoding,
) -> None:
    """Write what predictions and soft targets have in common; field by field, which takes half the time."""
    message.epoch, message.step = position
    message.batch_digest = digest
    message.rows, message.classes = probabilities.shape
    if encoding == FLOAT32:
        message.probabilities = as_float32(probabilities)
    else:
        message.encoding = encoding
        message.probabilities, message.classes_of = encoded(probabilities, encoding)


def decode_soft_target(message: pb.SoftTarget) -> SoftTarget:
    """The soft target in a message.

    Raises:
        PredictionError: its bytes do not fill its shape.
    """
    (probabilities,) = _tensors(message, 1)
    return SoftTarget(Position(message.epoch, message.step), message.batch_digest, message.weight, probabilities)


def decode_soft_targets(message: pb.SoftTargets) -> tuple[Position, bytes, float, Sequence[Probabilities]]:
    """The same of several peers: what they have in common, and the probabilities, in the order of the channels."""
    said = message.soft_target
    position = Position(said.epoch, said.step)
    return position, said.batch_digest, said.weight, _tensors(said, len(message.channels))


def as_float32(probabilities: Probabilities) -> bytes:
    """`probabilities` of a message in float32."""
    return (probabilities if probabilities.dtype is FLOAT else probabilities.astype(FLOAT)).tobytes()


def encoded(probabilities: Probabilities, encoding: Encoding) -> tuple[bytes, bytes]:
    """`probabilities` and `classes_of` of a message in an encoding."""
    if encoding == FLOAT32:
        return as_float32(probabilities), b""
    if encoding == FLOAT16:
        return (probabilities * FLOAT.type(HALF_SCALE)).astype(_HALF).tobytes(), b""
    row, column = np.nonzero(probabilities)
    counts = np.bincount(row, minlength=len(probabilities))
    values = probabilities[row, column].astype(FLOAT)
    return values.tobytes(), np.concatenate([counts, column]).astype(_NUMBER).tobytes()


def _tensors(message: pb.Prediction | pb.SoftTarget, peers: int) -> Sequence[Probabilities]:
    """`(rows, classes)` float32 of each peer; views of the message's bytes where that is what they hold."""
    rows, classes, data, encoding = message.rows, message.classes, message.probabilities, message.encoding
    if encoding == SPARSE:
        if peers != 1:
            raise PredictionError("a sparse prediction is of several peers", expected="1 peer", got=f"{peers} peers")
        return (_dense(message),)
    kind = _HALF if encoding == FLOAT16 else FLOAT
    if peers * rows * classes * kind.itemsize != len(data):
        shape = f"{rows} × {classes}" if peers == 1 else f"{peers} × {rows} × {classes}"
        raise PredictionError(
            "a prediction's bytes do not fill its shape",
            expected=f"{shape} × {kind.itemsize} = {peers * rows * classes * kind.itemsize} bytes",
            got=f"{len(data)} bytes",
        )
    if encoding == FLOAT16:
        together = np.frombuffer(data, _HALF).astype(FLOAT) / FLOAT.type(HALF_SCALE)
        return list(together.reshape(peers, rows, classes))
    if peers == 1:
        return (np.ndarray((rows, classes), FLOAT, data),)  # a view of one place would cost as much again
    return list(np.ndarray((peers, rows, classes), FLOAT, data))


def _dense(message: pb.Prediction | pb.SoftTarget) -> Probabilities:
    rows, classes = message.rows, message.classes
    if rows * classes * FLOAT.itemsize > MAX_MESSAGE_BYTES:
        raise PredictionError("a sparse prediction is too large", expected=f"{MAX_MESSAGE_BYTES} bytes at most")
    values = np.frombuffer(message.probabilities, FLOAT, len(message.probabilities) // FLOAT.itemsize)
    numbers = np.frombuffer(message.classes_of, _NUMBER, len(message.classes_of) // _NUMBER.itemsize)
    counts, columns = numbers[:rows], numbers[rows:]
    whole = values.nbytes == len(message.probabilities) and numbers.nbytes == len(message.classes_of)
    if not (whole and len(counts) == rows and len(columns) == len(values) == int(counts.sum(dtype=np.int64))):
        raise PredictionError(
            "a sparse prediction's rows, classes and values do not belong together",
            expected=f"{rows} counts, and as many classes as values",
            got=f"{len(counts)} counts, {len(columns)} classes, {len(values)} values",
        )
    place = np.repeat(np.arange(rows), counts) * np.int64(classes) + columns
    if len(columns) and (int(columns.max()) >= classes or (np.diff(place) <= 0).any()):
        raise PredictionError("a sparse prediction's classes do not ascend in each row", expected=f"below {classes}")
    dense = np.zeros(rows * classes, FLOAT)
    dense[place] = values
    return dense.reshape(rows, classes)


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


def encode_held(peer: str, ids: SampleIds) -> list[pb.SamplesHeld]:
    """Which samples a peer has, as messages."""
    return [
        pb.SamplesHeld(peer=peer, sample_ids=ids[start : start + ORDER_CHUNK])
        for start in range(0, max(len(ids), 1), ORDER_CHUNK)
    ]


def decode_held(chunks: list[pb.SamplesHeld]) -> tuple[str, SampleIds]:
    """The peer and its samples' ids in messages; ProtocolError if there are none, or of several peers."""
    names = {chunk.peer for chunk in chunks}
    if len(names) != 1:
        raise ProtocolError("one peer says which samples it has", expected="one name", got=", ".join(names) or "none")
    ids = [np.fromiter(c.sample_ids, np.int64, len(c.sample_ids)) for c in chunks]
    return names.pop(), np.concatenate(ids)


def encode_order(order: SampleIds) -> Iterator[pb.SampleOrderChunk]:
    """A sample order as messages, made as they are asked for: all at once, they would weigh more than the order."""
    for start in range(0, len(order), ORDER_CHUNK):
        yield pb.SampleOrderChunk(sample_ids=order[start : start + ORDER_CHUNK])


def decode_order(chunks: list[pb.SampleOrderChunk]) -> SampleIds:
    """The sample order in messages, int64."""
    return np.concatenate([np.zeros(0, np.int64), *(np.fromiter(c.sample_ids, np.int64) for c in chunks)])
