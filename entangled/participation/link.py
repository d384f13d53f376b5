"""The way to a coordinator: what may be asked of it, and a stream that is made anew when it breaks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc
from grpc.experimental import ChannelOptions

from entangled import PROTOCOL_VERSION, codec, sending
from entangled.alignment import Position, SampleIds, check_order
from entangled.credentials import NOTHING, Credentials
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, PredictionError, UnreachableError
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.participation.stream import Stream
from entangled.status import from_refusal, from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

T = TypeVar("T")

OPTIONS = [
    ("grpc.max_receive_message_length", codec.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", codec.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A new channel is a new connection: the old one may lead nowhere without knowing it.
    ("grpc.use_local_subchannel_pool", 1),
    (ChannelOptions.SingleThreadedUnaryStream, 1),
]
TEND_SECONDS = 20.0
"""Where nothing was sent for so long, a heartbeat is."""

SILENT_TIMES = 5
"""So many times as long without a word from the coordinator, and the stream leads nowhere: it would have sent three
heartbeats."""

WATCH_SECONDS = 1.0
"""How late a wait may end that nothing comes for."""

CLOSING_SECONDS = 5.0
"""How long the end of a link may take."""

RETRY_SECONDS = 0.2
ROUND_TRIP_SECONDS = 60.0
"""How long a reply that waits for nobody else may take."""


class Speaker(Protocol):
    """A peer that speaks on a channel."""

    def arrived(self, message: pb.CoordinatorMessage) -> None:
        """Take in what has come."""

    def answered(self, position: Position, digest: bytes, weight: float, probabilities: Probabilities) -> None:
        """Take in a soft target that has come in a message for several."""

    def ended(self, error: EntangledError | None) -> None:
        """The channel has ended, and maybe its stream; the error says why, None that the coordinator said OK."""


class Channel:
    """One peer's place on a link's stream. Made by `Link.speak`."""

    def __init__(self, link: Link, stream: Stream, number: int, speaker: Speaker) -> None:
        self.stream, self.number, self.speaker = stream, number, speaker
        self.joined = False
        """The coordinator has said welcome: the stream must never be idle, nor silent for long."""
        self._link = link

    def send(self, message: sending.FromPeer) -> None:
        """Have a message sent, after those before it; if the stream has ended, it is dropped."""
        if self.number:
            message.channel = self.number
        self.stream.send(message)

    def close(self) -> None:
        """Speak no more, without a goodbye."""
        self._link.close_channel(self)


class _Waiter(NamedTuple):
    """A thread that waits while another reads."""

    done: Callable[[], bool]
    called: queue.SimpleQueue[None]


class Link:
    """The way to one coordinator, for the threads of a process.

    Of those that wait for the stream, one reads, and takes in what comes for all of them; where there is only one, no
    thread stands between it and gRPC. A thread of the link's own, which sleeps, ends waits that are too long and sends
    heartbeats.

    `experiment` and `run_id` are the coordinator's. What concerns the stream is called with `lock` held, but for `wait`
    and `push`; and so are a speaker's methods.

    Args:
        address: `host:port` or `unix:PATH`.
        connect_seconds: how long to wait for a coordinator to be there at all.
        credentials: what is shown at the coordinator's door.
        several: whether several peers speak on one stream; what is refused of one of them is then not the others'
            affair.

    Raises:
        UnreachableError: nobody answers at `address`.
        ProtocolError: the coordinator is of another version.
        MembershipError: the coordinator does not let these credentials in.
    """

    def __init__(
        self,
        address: str,
        connect_seconds: float = 60.0,
        credentials: Credentials = NOTHING,
        *,
        several: bool = False,
    ) -> None:
        self.address = address
        self.lock = threading.Lock()
        self._credentials = credentials
        self.several = several
        self._grpc = credentials.channel(address, OPTIONS)
        self._stub: Any = CoordinatorStub(self._grpc)
        self._stream: Stream | None = None
        self._channels: dict[int, Channel] = {}
        """Those of the stream, by number."""
        self._last_number = 0
        self._late = 0.0
        """When whoever reads has waited for too long."""
        self._waiters: list[_Waiter] = []
        self._orders: dict[int, SampleIds] = {}
        """Where several ask for the same, the orders of the last epochs that somebody has asked for."""
        self._ordering = threading.Lock()
        self._asking = 0
        """Threads that wait for an answer beside the stream."""
        self._closed = threading.Event()
        try:
            self.experiment, self.run_id = self._introduced(connect_seconds)
        except BaseException:
            self._grpc.close()
            raise
        self.patience = self.experiment.exchange.patience + ROUND_TRIP_SECONDS
        """Seconds after which the coordinator itself must have said that somebody was waited for too long."""
        self._watcher = threading.Thread(target=self._watch, name=f"link to {address}", daemon=True)
        self._watcher.start()

    def _introduced(self, seconds: float) -> tuple[Experiment, str]:
        request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
        try:
            shown = self._credentials.metadata
            reply = self._stub.GetExperiment(request, timeout=seconds, wait_for_ready=True, metadata=shown)
        except grpc.RpcError as error:
            raised = _raised(error)
            if isinstance(raised, UnreachableError):
                why = self._credentials.why_not(self.address) or ": is it running, and is this its address?"
                raise UnreachableError(f"no coordinator answers at {self.address} within {seconds:g} s{why}") from None
            raise raised from None
        return loads(reply.experiment_toml, f"the experiment of {self.address}"), reply.run_id

    def close(self) -> None:
        """Drop the connection."""
        self._closed.set()
        # A signal whose handler raises within gRPC may leave its channel locked, and whoever waits for that locks this.
        if self.lock.acquire(timeout=CLOSING_SECONDS):
            if self._stream is not None:
                self._abandon(self._stream, UnreachableError("its stream was left"))
            self.lock.release()
        self._watcher.join(CLOSING_SECONDS)
        self._grpc.close()

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._closed.is_set()

    # ---- what may be asked

    def agree(self, peer: str, sample_ids: SampleIds) -> SampleIds:
        """Which samples all peers have, where `peer` has these; see `seam.Exchange.agree`."""

        def ask() -> SampleIds:
            held, shown = iter(codec.encode_held(peer, sample_ids)), self._credentials.metadata
            return codec.decode_order(list(self._stub.AgreeSamples(held, timeout=self.patience, metadata=shown)))

        return self._again(ask)

    def order(self, epoch: int, samples: int) -> SampleIds:
        """An epoch's order of so many samples; see `seam.Exchange.order`."""

        def ask() -> SampleIds:
            request, shown = pb.GetSampleOrderRequest(epoch=epoch), self._credentials.metadata
            chunks = self._stub.GetSampleOrder(request, timeout=ROUND_TRIP_SECONDS, metadata=shown)
            return codec.decode_order(list(chunks))

        with self._ordering:
            order = self._orders.get(epoch)
            if order is None:
                order = self._again(ask)
                check_order(order, samples)
            if self.several:
                self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
            return order

    def round_trip(self) -> float:
        """Seconds that a question and its answer take."""
        began = time.perf_counter()
        request, shown = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION), self._credentials.metadata
        self._asked(lambda: self._stub.GetExperiment(request, timeout=ROUND_TRIP_SECONDS, metadata=shown))
        return time.perf_counter() - began

    def _again(self, ask: Callable[[], T]) -> T:
        """Do it again while the coordinator is away, for as long as patience lasts."""
        give_up = time.monotonic() + self.patience
        while True:
            try:
                return self._asked(ask)
            except UnreachableError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(RETRY_SECONDS)

    def _asked(self, ask: Callable[[], T]) -> T:
        with self.lock:
            channel = self._grpc
            self._asking += 1
        try:
            return ask()
        except grpc.RpcError as error:
            raise _raised(error) from None
        except ValueError:
            if channel is self._grpc and not self.closed:
                raise
            raise UnreachableError(f"the coordinator at {self.address} is silent") from None  # its channel was closed
        finally:
            with self.lock:
                self._asking -= 1

    # ---- the stream

    def speak(self, speaker: Speaker) -> Channel:
        """A channel for `speaker`, which is to join on it; on a new stream, if none is there or only one can speak."""
        if self._stream is not None and not self.several:
            self._abandon(self._stream, UnreachableError("its stream was left"))
        if self._stream is None:
            self._stream = Stream(self._grpc, self.address, self._credentials.metadata)
            self._channels, self._last_number = {}, 0
        if self.several:
            self._last_number += 1
        channel = Channel(self, self._stream, self._last_number, speaker)
        self._channels[channel.number] = channel
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Let a peer go without a goodbye. The coordinator knows who is there by who is on a stream."""
        if channel.stream is self._stream and channel.number in self._channels:
            del self._channels[channel.number]
            why = "another peer of this process has left its stream" if self.several else "its stream was left"
            self._abandon(channel.stream, UnreachableError(why))

    def wait(self, done: Callable[[], bool], give_up: float) -> None:
        """Return when `done`, which what comes may change, when there is no stream any more, or when it is too late.

        Args:
            done: is called with `lock` held.
            give_up: when it is too late, on the monotonic clock; `WATCH_SECONDS` later at most. A stream on which
                nothing has come by then is left, for it may lead nowhere.
        """
        with self.lock:
            try:
                while not done() and self._stream is not None and time.monotonic() < give_up:
                    stream = self._stream
                    if stream.being_read:
                        self._let_read(done, give_up)
                        continue
                    while not self._read(stream, give_up) and stream is self._stream:
                        pass
            finally:
                if self._waiters:
                    self._hand_over()

    def push(self) -> None:
        """See that what was sent is on its way, where nobody reads who would."""
        with self.lock:
            self._push()

    def _push(self) -> None:
        stream = self._stream
        try:
            while stream is not None and stream.needs_reading and not stream.being_read and stream is self._stream:
                self._read(stream, time.monotonic() + ROUND_TRIP_SECONDS)
        finally:
            self._hand_over()

    def _read(self, stream: Stream, give_up: float) -> bool:
        """Wait for one event of the stream, and take it in; whether anything may be different for those who wait."""
        stream.being_read, self._late = True, give_up
        self.lock.release()
        try:
            event = stream.wait()
        finally:
            self.lock.acquire()
            stream.being_read = False
            if stream.over:  # an exception has come in between, maybe while gRPC's channel was locked
                self._renew(stream, "its stream was left")
        message = stream.take(event)
        if message is None and not stream.over:
            return False
        if message is not None and stream is self._stream:
            try:
                self._arrived(message)
            except PredictionError as error:
                self._abandon(stream, error)
        if stream.over:
            self._ended(stream, stream.error)
        for waiter in self._waiters:
            if waiter.done():
                waiter.called.put(None)
        return True

    def _let_read(self, done: Callable[[], bool], give_up: float) -> None:
        """Wait while another thread reads."""
        waiter = _Waiter(done, queue.SimpleQueue())
        self._waiters.append(waiter)
        self.lock.release()
        try:
            waiter.called.get(timeout=max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            pass
        finally:
            self.lock.acquire()
            self._waiters.remove(waiter)

    def _hand_over(self) -> None:
        """Let another of those who wait read."""
        if self._waiters and not (self._stream and self._stream.being_read):
            self._waiters[0].called.put(None)

    def _arrived(self, message: pb.CoordinatorMessage) -> None:
        """Take in a message of the stream's; PredictionError if it brings what is no soft target."""
        match message.WhichOneof("kind"):
            case "soft_target":
                answer, channel = codec.decode_soft_target(message.soft_target), self._channels.get(message.channel)
                if channel is not None:  # it has not ended
                    channel.speaker.answered(*answer)
            case "soft_targets":
                position, digest, weight, targets = codec.decode_soft_targets(message.soft_targets)
                for number, target in zip(message.soft_targets.channels, targets, strict=True):
                    channel = self._channels.get(number)
                    if channel is not None:
                        channel.speaker.answered(position, digest, weight, target)
            case "bundle":
                for spoken in message.bundle.messages:
                    self._arrived(spoken)
            case kind:
                channel = self._channels.get(message.channel)
                if channel is not None and kind != "ended":
                    channel.speaker.arrived(message)
                elif channel is not None:
                    del self._channels[channel.number]
                    refused = message.ended.HasField("refusal")
                    channel.speaker.ended(from_refusal(message.ended.refusal) if refused else None)

    def _ended(self, stream: Stream, error: EntangledError | None) -> None:
        if stream is not self._stream:
            return
        channels, self._stream, self._channels = self._channels, None, {}
        for channel in channels.values():
            channel.speaker.ended(error)
        for waiter in self._waiters:
            waiter.called.put(None)

    def _abandon(self, stream: Stream, why: EntangledError) -> None:
        stream.cancel(why)
        self._ended(stream, why)

    # ---- the link's own thread

    def _watch(self) -> None:
        """Tend the stream on which a peer has joined, and leave the one that is waited for in vain.

        gRPC notices a connection that is gone, but not one behind which somebody else holds it.
        """
        tended: Stream | None = None
        heard = said = silent = 0
        since = 0.0
        while not self._closed.wait(min(WATCH_SECONDS, TEND_SECONDS)):
            with self.lock:
                stream, now = self._stream, time.monotonic()
                if stream is None:
                    continue
                if stream is not tended:
                    tended, heard, said, silent, since = stream, stream.heard, stream.said, 0, now
                if stream.being_read and now >= self._late:
                    self._renew(stream, f"the coordinator at {self.address} does not answer")
                elif now - since >= TEND_SECONDS:
                    awaited = stream.being_read or self._asking  # else nobody reads, and nothing is heard
                    silent = silent + 1 if awaited and stream.heard == heard else 0
                    if silent >= SILENT_TIMES:
                        self._renew(stream, f"the coordinator at {self.address} is silent")
                    elif stream.said == said:
                        self._beat(stream)
                    heard, said, since = stream.heard, stream.said, now

    def _beat(self, stream: Stream) -> None:
        """Send a heartbeat, if a peer has joined, and see that it goes out."""
        joined = next((channel for channel in self._channels.values() if channel.joined), None)
        if joined is None or stream.needs_reading:
            return
        joined.send(pb.PeerMessage(heartbeat=pb.Heartbeat()))
        self._push()

    def _renew(self, stream: Stream, why: str) -> None:
        """Leave a stream for a new connection."""
        channel, self._grpc = self._grpc, self._credentials.channel(self.address, OPTIONS)
        self._stub = CoordinatorStub(self._grpc)
        self._abandon(stream, UnreachableError(why))
        channel.close()


def _raised(error: Any) -> EntangledError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())
