"""The wire by hand: any message, in any order, and everything that comes back."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from entangled import PROTOCOL_VERSION, codec
from entangled.alignment import Fingerprint, Position, batch_digest, sample_order
from entangled.credentials import NOTHING, Credentials
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from tests.support import SAMPLES, data, prediction

SERVICE = "/entangled.v1.Coordinator/"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
]


def channel_to(address: str, shown: Credentials = NOTHING) -> Any:
    """A channel without limits of its own."""
    return shown.channel(address, OPTIONS)


def join(peer: str, instance: str = "", fingerprint: Fingerprint | None = None, version: int = PROTOCOL_VERSION):
    """A join; by default of the data set that `support.data` names."""
    wire = codec.encode_fingerprint(fingerprint or data())
    instance = instance or f"first {peer}"
    return pb.PeerMessage(
        join=pb.Join(protocol_version=version, peer=peer, instance=instance, origin=f"host of {peer}", fingerprint=wire)
    )


def on(channel: int, message: pb.PeerMessage):
    """The message on a channel of its stream."""
    message.channel = channel
    return message


def as_one(*predictions: pb.PeerMessage):
    """Predictions on channels, for one batch, as one message, as docs/protocol.md describes it."""
    several = pb.Predictions(channels=[one.channel for one in predictions], prediction=predictions[0].prediction)
    several.prediction.probabilities = b"".join(one.prediction.probabilities for one in predictions)
    return pb.PeerMessage(predictions=several)


def predict(experiment: Experiment, peer: str, index: int, seed: int = 0):
    """The right prediction for the batch at `index`: the right samples, and a distribution."""
    position, ids = batch(experiment, index)
    return codec.encode_prediction(position, batch_digest(position, ids), prediction(peer, position, len(ids), seed))


def batch(experiment: Experiment, index: int):
    """Position and sample ids of the batch at `index`."""
    layout = experiment.layout(SAMPLES)
    position = layout.position(index)
    ids = np.arange(SAMPLES)
    order = sample_order(ids, experiment.exchange.shuffle_buffer, experiment.seed, position.epoch)
    return position, layout.batch(order, position.step)


def final(experiment: Experiment):
    """The last metrics."""
    end = Position(experiment.epochs - 1, experiment.layout(SAMPLES).steps_per_epoch - 1)
    return pb.PeerMessage(metrics=pb.Metrics(epoch=end.epoch, step=end.step, values={"test_loss": 1.0}, final=True))


class RawPeer:
    """One Exchange stream. `received` keeps everything that came on it."""

    def __init__(self, address: str, seconds: float, shown: Credentials = NOTHING, method: str = "Exchange") -> None:
        self.received: list[pb.CoordinatorMessage] = []
        self._outgoing: queue.SimpleQueue[pb.PeerMessage | bytes | None] = queue.SimpleQueue()
        self._channel = channel_to(address, shown)
        call = self._channel.stream_stream(SERVICE + method, _serialise, pb.CoordinatorMessage.FromString)
        self._call = call(iter(self._outgoing.get, None), wait_for_ready=True, timeout=seconds, metadata=shown.metadata)
        self._messages = _each(self._call)

    def send(self, *messages: pb.PeerMessage | bytes) -> None:
        """Send messages, or bytes in the place of one."""
        for message in messages:
            self._outgoing.put(message)

    def receive(self, kind: str) -> Any:
        """The next message of a kind; others may come before it and are kept in `received`."""
        for message in self._messages:
            self.received.append(message)
            if message.WhichOneof("kind") == kind:
                return getattr(message, kind)
        raise AssertionError(f"the stream ended without a {kind}")

    def joins(self, peer: str, **arguments: Any) -> Any:
        """Join; the welcome."""
        self.send(join(peer, **arguments))
        return self.receive("welcome")

    def exchange(self, experiment: Experiment, peer: str, index: int) -> Any:
        """Exchange the batch at `index` honestly; the soft target."""
        self.send(predict(experiment, peer, index))
        return self.receive("soft_target")

    def leaves(self, experiment: Experiment) -> None:
        """Send the last metrics and say goodbye; returns when the coordinator has ended the stream with OK."""
        self.send(final(experiment), pb.PeerMessage(leave=pb.Leave()))
        self.received += self._messages
        self._channel.close()

    def leaves_on(self, channel: int, experiment: Experiment) -> None:
        """`leaves`, on a channel, which must be the stream's last."""
        self.send(on(channel, final(experiment)), on(channel, pb.PeerMessage(leave=pb.Leave())))
        self.received += self._messages
        self._channel.close()

    def refused(self) -> EntangledError:
        """Wait for the end of the stream, which must be an error; what the coordinator says."""
        with contextlib.suppress(grpc.RpcError):
            self.received += self._messages
        code = self._call.code()
        assert code is not grpc.StatusCode.OK, "the stream ended well"
        refusal = from_status(code, self._call.details() or "", self._call.trailing_metadata() or ())
        self._channel.close()
        return refusal

    def soft_targets(self) -> int:
        """How many soft targets, and with them weights, ever came on this stream."""
        return sum(m.WhichOneof("kind") == "soft_target" for m in self.received)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self._outgoing.put(None)

    def over(self) -> None:
        """Wait for the end of the stream, whatever it is."""
        with contextlib.suppress(grpc.RpcError):
            self.received += self._messages
        self._channel.close()

    def close(self) -> None:
        """Break the connection."""
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()


def _each(call: Any) -> Iterator[pb.CoordinatorMessage]:
    """Every message, also those that come as one."""
    for message in call:
        for one in message.bundle.messages if message.HasField("bundle") else (message,):
            yield from _apart(one.soft_targets) if one.HasField("soft_targets") else (one,)


def _apart(several: pb.SoftTargets) -> Iterator[pb.CoordinatorMessage]:
    """Soft targets of several channels as a message for each, as docs/protocol.md describes it."""
    together = several.soft_target.probabilities
    each = len(together) // len(several.channels)
    for place, channel in enumerate(several.channels):
        one = pb.CoordinatorMessage(channel=channel, soft_target=several.soft_target)
        one.soft_target.probabilities = together[place * each :][:each]
        yield one


def _serialise(message: pb.PeerMessage | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
