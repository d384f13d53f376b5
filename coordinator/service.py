"""gRPC in front of the session: decode, handle, carry out the effects. All on one event loop, on one thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from coordinator.archive import Archive
from coordinator.decoding import event_of, predictions_of, unreadable
from coordinator.entry import MAX_SAMPLES
from coordinator.events import (
    Answer,
    Decided,
    Departed,
    Disconnected,
    Effect,
    Event,
    Exchange,
    Failed,
    Finished,
    Left,
    Recall,
    Record,
    Replaced,
    Started,
    Synced,
    Thin,
    Ticked,
    Warn,
    Welcome,
)
from coordinator.gathering import Gathering
from coordinator.run_folder import RunFolder
from coordinator.session import Session
from coordinator.stream import Stream, on_channel
from entangled import PROTOCOL_VERSION, codec, faults, membership, sending
from entangled.alignment import SampleIds
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, PatienceError, ProtocolError
from entangled.status import to_refusal, to_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorServicer

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
HEARTBEAT_SECONDS = 30.0
WATCH_SECONDS = 0.25
REST_SECONDS = 1.0
"""How long what is left to be said on a stream may take, once it has ended."""


class CoordinatorService(CoordinatorServicer):
    """The service of proto/entangled/v1/exchange.proto over a `Session`.

    Args:
        session: the state machine.
        experiment_toml: the experiment as resolved, for peers to read.
        folder: the run's, with its log.
        record: takes a complete exchange for the log; must not block.
        thin: is told before which index nobody will ask the log for predictions again; must not block.
    """

    def __init__(
        self,
        session: Session,
        experiment_toml: str,
        folder: RunFolder,
        record: Callable[[Exchange], None],
        thin: Callable[[int], None],
    ) -> None:
        self.session = session
        self.over: asyncio.Future[EntangledError | None] = asyncio.get_running_loop().create_future()
        """Done when the run is; holds why it failed, or None."""
        self._toml = experiment_toml
        self._folder = folder
        self._record = record
        self._thin = thin
        self._gathering = Gathering(session.experiment.peer_names, folder.common)
        self._archives: dict[int, Archive] = {}
        self._connections: dict[int, tuple[Stream, int]] = {}
        """For each of the session's connections, the stream and the channel on it."""
        self._encoding = codec.encoding(session.experiment.exchange.encoding)
        self._last_id = 0

    # ---- the contract's methods

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Any) -> pb.GetExperimentReply:  # noqa: N802
        """The experiment, to a caller of the same protocol version."""
        if request.protocol_version != PROTOCOL_VERSION:
            await _abort(
                context,
                ProtocolError(
                    "peer and coordinator are of different versions; install the same release on both sides",
                    expected=f"protocol {PROTOCOL_VERSION}",
                    got=f"protocol {request.protocol_version}",
                ),
            )
        return pb.GetExperimentReply(
            protocol_version=PROTOCOL_VERSION,
            experiment_toml=self._toml,
            run_id=self._folder.run_id,
            clock=time.time_ns() // 1000,
        )

    async def GetSampleOrder(  # noqa: N802
        self, request: pb.GetSampleOrderRequest, context: Any
    ) -> AsyncIterator[pb.SampleOrderChunk]:
        """The order of one epoch's samples."""
        try:
            chunks = codec.encode_order(self.session.order(request.epoch))
        except EntangledError as error:
            await _abort(context, error)
            return
        for chunk in chunks:
            yield chunk

    async def AgreeSamples(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Take in which samples a peer has; answer with those that all have, when all have spoken."""
        try:
            if not self.session.experiment.vertical:
                raise ProtocolError("the peers of this experiment have the same samples: there is nothing to agree on")
            chunks: list[pb.SamplesHeld] = []
            while (message := await _next(context)) is not grpc.aio.EOF:
                codec.refuse_unknown(message)
                chunks.append(message)
                if sum(len(chunk.sample_ids) for chunk in chunks) > MAX_SAMPLES:
                    raise ProtocolError("too many sample ids", expected=f"at most {MAX_SAMPLES}")
            for note in self._gathering.hold(*codec.decode_held(chunks)):
                log.warning(note)
            if self._gathering.common is not None and self._folder.common is None:
                self._folder.agreed(self._gathering.common)
            for chunk in codec.encode_order(await self._common()):
                await context.write(chunk)
        except EntangledError as error:
            log.warning("refused %s: %s", context.peer(), error)
            await _abort(context, error)

    async def _common(self) -> SampleIds:
        patience = self.session.experiment.exchange.patience
        give_up = time.monotonic() + patience
        while self._gathering.common is None:
            if self.over.done():
                raise self.over.result() or ProtocolError("the run is over")
            if time.monotonic() > give_up:
                names = ", ".join(self._gathering.waited_for)
                raise PatienceError(f"waited {patience:g} s for {names} to say which samples it has")
            await asyncio.wait([self.over], timeout=TICK_SECONDS)
        return self._gathering.common

    async def Exchange(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """One peer process's stream."""
        if self.over.done():
            await _abort(context, self.over.result() or ProtocolError("the run is over"))
        stream = Stream(context, self._take)
        stream.read()
        try:
            await stream.over
        except EntangledError as error:
            stream.error = error
            stream.outgoing.clear()
            log.warning("refused %s: %s", context.peer(), error)
        finally:
            for connection in stream.connections.values():
                self._connections.pop(connection, None)
                self._archives.pop(connection, None)
                self._handle(Disconnected(connection))
            stream.end()
            await stream.written(REST_SECONDS)  # gRPC could not send the status after a message that is cut off
        if stream.error is not None:
            await _abort(context, stream.error)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.Activity]:  # noqa: N802
        """What is going on, whenever it has changed."""
        last = None
        while True:
            activity = self.activity()
            if activity != last:
                yield activity
                last = activity
            if activity.finished:
                return
            await asyncio.wait([self.over], timeout=WATCH_SECONDS)

    # ---- what the server calls

    def durable(self, complete: int) -> None:
        """Every position before `complete` is on disk."""
        self._handle(Synced(complete))
        message = pb.CoordinatorMessage(durable=pb.Durable(complete=complete))
        for stream, channel in self._joined():
            stream.send_durable(on_channel(channel, message))

    async def tick(self) -> None:
        """Let time pass, for ever: deadlines, heartbeats."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._handle(Ticked())
            now = time.monotonic()
            for stream, _ in self._joined():
                if now - stream.sent_at > HEARTBEAT_SECONDS and not stream.outgoing:
                    stream.sent_at = now
                    stream.send(pb.CoordinatorMessage(heartbeat=pb.Heartbeat()))

    def fail(self, error: EntangledError) -> None:
        """End the run for everybody."""
        self.session.over = True
        self._perform(Failed(error))

    def activity(self) -> pb.Activity:
        """The present state, for people."""
        session = self.session
        failure = self.over.result() if self.over.done() else None
        return pb.Activity(
            peers=[
                pb.Activity.Peer(
                    name=m.name,
                    connected=m.connection is not None,
                    epoch=m.position.epoch,
                    step=m.position.step,
                    values=m.values,
                    done=m.done,
                )
                for m in session.members.values()
            ],
            complete=session.complete,
            total=session.layout.positions if session.layout else 0,
            weight=session.weight,
            finished=self.over.done(),
            failure=str(failure) if failure else "",
        )

    # ---- events in, effects out

    def _take(self, stream: Stream, message: pb.PeerMessage) -> None:
        """Take in what a peer says. On a channel of its own, what is wrong with it concerns nobody else there."""
        kind = message.WhichOneof("kind")
        if kind == "predictions":
            self._take_several(stream, message)
            return
        connection = stream.connections.get(message.channel) or self._open(stream, message.channel)
        if kind == "heartbeat" and self.session.has_joined(connection):
            return
        try:
            event = event_of(connection, kind, message, self._encoding)
            self._handle(event)
        except EntangledError as error:
            self._refuse(message.channel, connection, error)
            return
        if isinstance(event, Left):
            self._end_channel(connection)

    def _take_several(self, stream: Stream, message: pb.PeerMessage) -> None:
        """Take in predictions of several peers; where one of them is wrong, each by itself."""
        known, channels = stream.connections.get, tuple(message.predictions.channels)
        if not channels or len(set(channels)) < len(channels):
            raise ProtocolError("predictions are of several channels, each once", got=f"channels {list(channels)}")
        connections = [known(channel) or self._open(stream, channel) for channel in channels]
        event = predictions_of(connections, message, self._encoding)
        try:
            self._handle(event)
        except EntangledError:
            for channel, one in zip(channels, event.apart(), strict=True):
                try:
                    self._handle(one)
                except EntangledError as error:
                    self._refuse(channel, one.connections[0], error)

    def _refuse(self, channel: int, connection: int, error: EntangledError) -> None:
        """End the channel on which something wrong was said; with channel 0, which is all there is then, the stream."""
        if channel == 0:
            raise error
        log.warning("refused channel %d: %s", channel, error)
        self._end_channel(connection, error)

    def _end_channel(self, connection: int, error: EntangledError | None = None) -> None:
        """A peer speaks on its channel no more, and with the last of them its stream ends."""
        stream, channel = self._connections.pop(connection, (None, 0))
        self._archives.pop(connection, None)
        self._handle(Disconnected(connection))
        if stream is None:
            return
        del stream.connections[channel]
        if not stream.connections:
            stream.end(error)
        elif channel:
            ended = pb.Ended(refusal=to_refusal(error) if error else None)
            stream.send(on_channel(channel, pb.CoordinatorMessage(ended=ended)))

    def _open(self, stream: Stream, channel: int) -> int:
        """A new connection of the session, for a channel of a stream on which nobody has spoken yet."""
        if len(stream.connections) >= len(self.session.members):
            raise ProtocolError(
                "a stream has more peers than the experiment",
                expected=f"at most {len(self.session.members)} channels",
                got=f"channel {channel}",
            )
        self._last_id += 1
        stream.connections[channel] = self._last_id
        self._connections[self._last_id] = stream, channel
        return self._last_id

    def _handle(self, event: Event) -> None:
        for effect in self.session.handle(event, time.monotonic()):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Answer():
                self._answer(effect)
            case Recall():
                self._recall(effect)
            case Record(exchange):
                self._record(exchange)
            case Thin(before):
                self._thin(before)
            case Welcome(connection, complete, lookahead):
                welcome = pb.Welcome(run_id=self._folder.run_id, complete=complete, lookahead=lookahead)
                self._send(connection, pb.CoordinatorMessage(welcome=welcome))
                self._send(connection, pb.CoordinatorMessage(durable=pb.Durable(complete=self.session.durable)))
            case Decided(lookahead):
                self._folder.decided(lookahead)
                log.info("the look-ahead is %d", lookahead)
                self._tell(pb.CoordinatorMessage(lookahead=pb.Lookahead(batches=lookahead)))
            case Started(fingerprint):
                self._folder.started(fingerprint)
                faults.point("coordinator", "after start")
            case Departed(peer, values):
                self._folder.departed(peer, values)
                faults.point("coordinator", "after goodbye")
            case Warn(message):
                log.warning(message)
            case Replaced(connection):
                self._end_channel(connection, ProtocolError("the same process has joined again elsewhere"))
            case Finished():
                self._end(None)
            case Failed(error):
                log.error("the run is over: %s", error)
                self._end(error)

    def _answer(self, answer: Answer) -> None:
        connections, position, digest, weight, targets = answer
        several: dict[Stream, tuple[list[int], list[Probabilities]]] = {}
        for connection, target in zip(connections, targets, strict=True):
            faults.point("coordinator", "before reply")
            stream, channel = self._connections.get(connection, (None, 0))
            if stream is None:
                continue
            if channel == 0:
                stream.send(sending.write_soft_target(position, digest, weight, target, self._encoding))
                continue
            if stream not in several:
                several[stream] = [], []
            channels, theirs = several[stream]
            channels.append(channel)
            theirs.append(target)
        for stream, (channels, theirs) in several.items():
            for message in sending.write_soft_targets(channels, position, digest, weight, theirs, self._encoding):
                stream.send(message)

    def _recall(self, recall: Recall) -> None:
        """Answer from the log: the same arithmetic on the same numbers gives what was answered first (guarantee 2)."""
        archive = self._archives.setdefault(recall.connection, Archive(self._folder.path, self.session.experiment))
        members, predictions = archive.exchange(recall.position, recall.index)
        if recall.peer in members and not np.array_equal(predictions[members.index(recall.peer)], recall.probabilities):
            log.warning(
                "peer %s repeated %s with another prediction; the first one stands", recall.peer, recall.position
            )
        combination = self.session.experiment.combination(members)
        target = membership.soft_target(recall.peer, members, predictions, combination)
        weight = membership.weight(recall.peer, members, recall.weight)
        self._answer(Answer([recall.connection], recall.position, recall.digest, weight, [target]))
        asyncio.get_running_loop().call_soon(archive.prefetch)

    def _joined(self) -> list[tuple[Stream, int]]:
        """Where peers listen; one that has not joined must not hear anything before its welcome."""
        return [there for number, there in self._connections.items() if self.session.has_joined(number)]

    def _tell(self, message: pb.CoordinatorMessage) -> None:
        """Send to every peer."""
        for stream, channel in self._joined():
            stream.send(on_channel(channel, message))

    def _send(self, connection: int, message: pb.CoordinatorMessage) -> None:
        stream, channel = self._connections.get(connection, (None, 0))
        if stream is not None:
            if channel:
                message.channel = channel
            stream.send(message)

    def _end(self, error: EntangledError | None) -> None:
        if not self.over.done():
            self.over.set_result(error)
        for stream, _ in self._connections.values():
            stream.end(error)


async def _next(context: Any) -> Any:
    try:
        return await context.read()
    except DecodeError as error:
        raise unreadable(error) from None


async def _abort(context: Any, error: EntangledError) -> None:
    code, details, trailing = to_status(error)
    await context.abort(code, details, trailing)
