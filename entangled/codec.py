"""Wire messages <-> the types of the pure modules: the only place that knows both.

Decoding is where unknown fields and malformed tensors are refused (guarantee 4), so that nothing behind it has to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

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

HEAD_BYTES = 96
"""What the message of a small prediction has beside its probabilities, at most."""

BUNDLE_BYTES = 48 * 1024
"""Of the messages that are sent as one: less than every message may have beside a prediction."""

LARGE_BYTES = 64 * 1024
"""Of probabilities, from which on a message is `Written`; more than goes into a bundle."""


class Written:
    """A message that is written already, and can be sent where a message can.

    protobuf would copy a large prediction three times on its way from an array to the wire; this is one copy.

    Args:
        data: what protobuf would write, but for the channel.
        channel_tag: of the field `channel`.
    """

    def __init__(self, data: bytes, channel_tag: bytes) -> None:
        self.channel = 0
        self._data, self._channel_tag = data, channel_tag

    def SerializeToString(self) -> bytes:  # noqa: N802 # as protobuf calls it
        """The message's bytes."""
        return self._data + self._channel_tag + _varint(self.channel) if self.channel else self._data

    def ByteSize(self) -> int:  # noqa: N802
        """How many they are, but for the channel."""
        return len(self._data)


class Unwritten:
    """A small prediction, written when it is sent: with those of other channels for the same batch, if any wait.

    Args:
        head: what predictions have in common that can be one message: position, batch digest, shape, and encoding.
        data: the probabilities, encoded.
    """

    __slots__ = ("channel", "data", "head")

    def __init__(self, head: tuple[Position, bytes, tuple[int, ...], Encoding], data: bytes) -> None:
        self.channel = 0
        self.head, self.data = head, data

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The message's bytes."""
        return joined((self,)).SerializeToString()

    def ByteSize(self) -> int:  # noqa: N802
        """How many they are at most."""
        return len(self.data) + HEAD_BYTES


FromPeer = pb.PeerMessage | Written | Unwritten
ToPeer = pb.CoordinatorMessage | Written


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


def next_spoken(waiting: deque[Any], bundle: Callable[[list[Any]], Any]) -> Any:
    """Take what is to be sent next from what waits: its first message, or as many on channels as go into one.

    Args:
        waiting: `FromPeer`s or `ToPeer`s, in order; at least one.
        bundle: makes one message of several.
    """
    first = waiting.popleft()
    if not first.channel or not waiting or isinstance(first, Written):
        return first
    size, found = first.ByteSize(), [first]
    while waiting and (then := waiting[0]).channel and not isinstance(then, Written):
        size += then.ByteSize()
        if size > BUNDLE_BYTES:
            break
        found.append(then)
        waiting.popleft()
    together: list[Any] = []
    for head, group in groupby(found, _head):
        some = list(group)
        together += some if head is None else [joined(some)]
    return bundle(together) if len(together) > 1 else together[0]


def _head(message: Any) -> object:
    return message.head if isinstance(message, Unwritten) else None


def joined(several: Sequence[Unwritten]) -> pb.PeerMessage:
    """The message that predictions of one `head` are together."""
    position, digest, shape, encoding = several[0].head
    message = pb.PeerMessage()
    if len(several) > 1:
        message.predictions.channels.extend([one.channel for one in several])
        said = message.predictions.prediction
    else:
        if several[0].channel:
            message.channel = several[0].channel
        said = message.prediction
    said.epoch, said.step = position
    said.batch_digest = digest
    said.rows, said.classes = shape
    if encoding != FLOAT32:
        said.encoding = encoding
    said.probabilities = b"".join([one.data for one in several])
    return message


def bundle_of_peers(messages: list[pb.PeerMessage]) -> pb.PeerMessage:
    """Messages to a coordinator as one."""
    return pb.PeerMessage(bundle=pb.PeerBundle(messages=messages))


def bundle_to_peers(messages: list[pb.CoordinatorMessage]) -> pb.CoordinatorMessage:
    """Messages from a coordinator as one."""
    return pb.CoordinatorMessage(bundle=pb.CoordinatorBundle(messages=messages))


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


def write_prediction(
    position: Position, digest: bytes, probabilities: Probabilities, encoding: Encoding = FLOAT32
) -> FromPeer:
    """The same to be sent, whatever becomes of the array then: written already where it is large."""
    if encoding == SPARSE:
        return encode_prediction(position, digest, probabilities, encoding)
    if encoding == FLOAT32 and probabilities.nbytes >= LARGE_BYTES:
        message = pb.Prediction(epoch=position.epoch, step=position.step, batch_digest=digest)
        return _write(pb.PeerMessage, "prediction", message, probabilities)
    data = (
        probabilities.astype(FLOAT, copy=False).tobytes()
        if encoding == FLOAT32
        else _written(probabilities, encoding)[0]
    )
    return Unwritten((position, digest, probabilities.shape, encoding), data)


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


def size(message: pb.PeerMessage, probabilities: Probabilities, encoding: Encoding = FLOAT32) -> int:
    """Bytes of a message that holds a prediction of these `probabilities`.

    protobuf finds out by writing it once more, which a large one is spared.
    """
    if encoding != FLOAT32 or probabilities.nbytes < LARGE_BYTES:
        return message.ByteSize()
    said = message.prediction
    rest = pb.Prediction(epoch=said.epoch, step=said.step, batch_digest=said.batch_digest, classes_of=said.classes_of)
    rest.rows, rest.classes = said.rows, said.classes
    inner = rest.ByteSize() + 1 + len(_varint(probabilities.nbytes)) + probabilities.nbytes
    outer = pb.PeerMessage(channel=message.channel).ByteSize() if message.channel else 0
    return outer + 1 + len(_varint(inner)) + inner


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


def write_soft_target(
    position: Position, digest: bytes, weight: float, probabilities: Probabilities, encoding: Encoding = FLOAT32
) -> ToPeer:
    """The same to be sent: written already where it is large."""
    if encoding != FLOAT32 or probabilities.nbytes < LARGE_BYTES:
        return encode_soft_target(position, digest, weight, probabilities, encoding)
    message = pb.SoftTarget(epoch=position.epoch, step=position.step, batch_digest=digest, weight=weight)
    return _write(pb.CoordinatorMessage, "soft_target", message, probabilities)


def write_soft_targets(
    channels: Sequence[int],
    position: Position,
    digest: bytes,
    weight: float,
    several: Sequence[Probabilities],
    encoding: Encoding = FLOAT32,
) -> Iterator[ToPeer]:
    """Soft targets of one batch to be sent on these channels: as few messages as may be, of `BUNDLE_BYTES` at most."""
    together = BUNDLE_BYTES // (several[0].nbytes or 1) if encoding == FLOAT32 else 1
    if len(several) == 1 or together < 2:
        for channel, probabilities in zip(channels, several, strict=True):
            message = write_soft_target(position, digest, weight, probabilities, encoding)
            message.channel = channel
            yield message
        return
    for begin in range(0, len(several), together):
        some = several[begin : begin + together]
        message = pb.CoordinatorMessage()
        message.soft_targets.channels.extend(channels[begin : begin + together])
        target = message.soft_targets.soft_target
        target.epoch, target.step = position
        target.batch_digest, target.weight = digest, weight
        target.rows, target.classes = some[0].shape
        target.probabilities = b"".join([one.astype(FLOAT, copy=False).tobytes() for one in some])
        yield message


def _write(
    outer: type[Message], kind: str, inner: pb.Prediction | pb.SoftTarget, probabilities: Probabilities
) -> Written:
    """A message of a `kind` that holds `inner`, and the probabilities, which go straight to their place in it."""
    inner.rows, inner.classes = probabilities.shape
    exact = np.ascontiguousarray(probabilities, FLOAT)
    begins = inner.SerializeToString(), _tag(type(inner), "probabilities"), _varint(exact.nbytes)
    size = sum(map(len, begins)) + exact.nbytes
    parts = _tag(outer, kind), _varint(size), *begins, exact
    return Written(b"".join(parts), _tag(outer, "channel"))  # pyright: ignore[reportArgumentType] # buffers


@cache
def _tag(message: type[Message], field: str) -> bytes:
    """What stands before a field: its number, and whether its length follows."""
    found = message.DESCRIPTOR.fields_by_name[field]
    return _varint(found.number << 3 | (0 if found.type == found.TYPE_UINT32 else 2))


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits to a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


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
        message.probabilities = probabilities.astype(FLOAT, copy=False).tobytes()
    else:
        message.encoding = encoding
        message.probabilities, message.classes_of = _written(probabilities, encoding)


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


def _written(probabilities: Probabilities, encoding: Encoding) -> tuple[bytes, bytes]:
    """`probabilities` and `classes_of` of a message in an encoding."""
    if encoding == FLOAT32:
        return probabilities.astype(FLOAT, copy=False).tobytes(), b""
    if encoding == FLOAT16:
        return (probabilities * FLOAT.type(HALF_SCALE)).astype(_HALF).tobytes(), b""
    row, column = np.nonzero(probabilities)
    counts = np.bincount(row, minlength=len(probabilities))
    values = probabilities[row, column].astype(FLOAT)
    return values.tobytes(), np.concatenate([counts, column]).astype(_NUMBER).tobytes()


def _tensors(message: pb.Prediction | pb.SoftTarget, peers: int) -> Sequence[Probabilities]:
    """`(rows, classes)` float32 of each peer; views of the message's bytes where that is what they hold."""
    rows, classes, data = message.rows, message.classes, message.probabilities
    if message.encoding == SPARSE:
        if peers != 1:
            raise PredictionError("a sparse prediction is of several peers", expected="1 peer", got=f"{peers} peers")
        return (_dense(message),)
    kind = _HALF if message.encoding == FLOAT16 else FLOAT
    if peers * rows * classes * kind.itemsize != len(data):
        shape = f"{rows} × {classes}" if peers == 1 else f"{peers} × {rows} × {classes}"
        raise PredictionError(
            "a prediction's bytes do not fill its shape",
            expected=f"{shape} × {kind.itemsize} = {peers * rows * classes * kind.itemsize} bytes",
            got=f"{len(data)} bytes",
        )
    if message.encoding == FLOAT16:
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
