"""Messages of peers -> events of the session."""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from coordinator.events import Event, Joined, Left, MetricsArrived, Paced, PredictionArrived, Settled
from entangled import codec, sending
from entangled.alignment import Position
from entangled.errors import ProtocolError
from entangled.log_limit import printable
from entangled.v1 import exchange_pb2 as pb


def predictions_of(
    connections: Sequence[int], message: pb.PeerMessage, encoding: codec.Encoding = codec.FLOAT32
) -> PredictionArrived:
    """What several peers say in one message, as the session's event.

    Args:
        connections: on which they speak, in the order of the message's channels.
        message: as it came, with `predictions`.
        encoding: the experiment's.

    Raises:
        PredictionError: its bytes are no predictions of as many peers.
    """
    position, digest, probabilities = codec.decode_predictions(message.predictions, encoding)
    sizes = _shares(message.ByteSize(), len(connections))
    return PredictionArrived(connections, position, digest, probabilities, sizes, time.time_ns() // 1000)


def _shares(size: int, parts: int) -> list[int]:
    """As equal as can be; they add up to the whole."""
    share, rest = divmod(size, parts)
    return [share + 1] * rest + [share] * (parts - rest)


def event_of(
    connection: int, kind: str | None, message: pb.PeerMessage, encoding: codec.Encoding = codec.FLOAT32
) -> Event:
    """What a peer's message says, as the session's event.

    Args:
        connection: the session's, on which it came.
        kind: of the message.
        message: as it came.
        encoding: the experiment's.

    Raises:
        ProtocolError: it is of no kind that a peer may send.
        PredictionError: a prediction's bytes are no prediction.
    """
    match kind:
        case "prediction":
            position, digest, probabilities = codec.decode_prediction(message.prediction, encoding)
            sizes, received_at = (sending.size(message, probabilities, encoding),), time.time_ns() // 1000
            return PredictionArrived((connection,), position, digest, (probabilities,), sizes, received_at)
        case "join":
            join = message.join
            return Joined(
                connection,
                join.peer,
                join.instance,
                printable(join.origin, 200),
                join.protocol_version,
                codec.decode_fingerprint(join.fingerprint),
            )
        case "metrics":
            metrics = message.metrics
            position = Position(metrics.epoch, metrics.step)
            return MetricsArrived(connection, position, dict(metrics.values), metrics.epoch_end, metrics.final)
        case "pace":
            return Paced(connection, message.pace.step_us, message.pace.round_trip_us)
        case "settled":
            return Settled(connection, message.settled.complete)
        case "leave":
            return Left(connection, printable(message.leave.failure))
        case _:
            raise ProtocolError("an empty message", expected="join, prediction, metrics, pace, settled or leave")


def unreadable(error: DecodeError) -> ProtocolError:
    """The error for a message that protobuf cannot read."""
    return ProtocolError(f"a message cannot be read: {error}")
