"""What is sent of predictions and soft targets: in as few messages as may be, and the large ones in one copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from google.protobuf.message import Message

from entangled.alignment import Position
from entangled.codec import (
    FLOAT,
    FLOAT32,
    SPARSE,
    Encoding,
    as_float32,
    encode_prediction,
    encode_soft_target,
    encoded,
)
from entangled.distribution import Probabilities
from entangled.v1 import exchange_pb2 as pb

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


def write_prediction(
    position: Position,
    digest: bytes,
    probabilities: Probabilities,
    encoding: Encoding = FLOAT32,
    *,
    alone: bool = False,
) -> FromPeer:
    """A `(rows, classes)` prediction to be sent, whatever becomes of the array: written already where it is large.

    Args:
        position: of the batch.
        digest: of the batch.
        probabilities: float32.
        encoding: the experiment's.
        alone: nobody else speaks on the stream, with whose predictions it could go.
    """
    if encoding == FLOAT32 and probabilities.nbytes >= LARGE_BYTES:
        message = pb.Prediction(epoch=position.epoch, step=position.step, batch_digest=digest)
        return _write(pb.PeerMessage, "prediction", message, probabilities)
    if alone or encoding == SPARSE:
        return encode_prediction(position, digest, probabilities, encoding)
    return Unwritten((position, digest, probabilities.shape, encoding), encoded(probabilities, encoding)[0])


def write_soft_target(
    position: Position, digest: bytes, weight: float, probabilities: Probabilities, encoding: Encoding = FLOAT32
) -> ToPeer:
    """A `(rows, classes)` soft target to be sent: written already where it is large."""
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
        target.probabilities = b"".join(map(as_float32, some))
        yield message


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
        if head is None:
            together += some
        elif len({one.channel for one in some}) == len(some):
            together.append(joined(some))
        else:  # somebody repeats itself
            together += [joined([one]) for one in some]
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
