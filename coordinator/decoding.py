"""Messages of peers -> events of the session."""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from coordinator.events import Event, Joined, Left, MetricsArrived, Paced, PredictionArrived, Settled
from entangled import codec
from entangled.alignment import Position
from entangled.errors import ProtocolError
from entangled.log_limit import printable
from entangled.v1 import exchange_pb2 as pb


def predictions_of(
    connections: Sequence[int], message: pb.PeerMessage, encoding: codec.Encoding = codec.FLOAT32
) -> PredictionArrived:
    """The session's event for a prediction, which came on one connection or as one message on several.

    Raises:
        PredictionError: its bytes are no prediction of as many peers.
    """
    position, digest, probabilities = codec.decode_predictions(message.prediction, encoding, len(connections))
    size, received_at = codec.size(message, probabilities, encoding), time.time_ns() // 1000
    return PredictionArrived(connections, position, digest, probabilities, size, received_at)


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
            return predictions_of((connection,), message, encoding)
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
