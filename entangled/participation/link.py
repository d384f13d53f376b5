"""The way to a coordinator, asynchronous: what may be asked of it, and a stream that is made anew when it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from entangled import PROTOCOL_VERSION, codec
from entangled.alignment import SampleIds, check_order
from entangled.credentials import NOTHING, Credentials
from entangled.errors import EntangledError, UnreachableError
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.participation.stream import Stream
from entangled.status import from_refusal, from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

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
]
TEND_SECONDS = 20.0
"""Where nothing was sent for so long, a heartbeat is."""

SILENT_TIMES = 5
"""So many times as long without a word from the coordinator, and the stream leads nowhere: it would have sent three
heartbeats."""

RETRY_SECONDS = 0.2
ROUND_TRIP_SECONDS = 60.0
"""How long a reply that waits for nobody else may take."""


class Speaker(Protocol):
    """A peer that speaks on a channel."""

    def arrived(self, message: pb.CoordinatorMessage) -> None:
        """Take in what has come."""

    def ended(self, error: EntangledError | None) -> None:
        """The channel has ended, and maybe its stream; the error says why, None that the coordinator said OK."""


class Channel:
    """One peer's place on a link's stream. Made by `Link.speak`."""

    def __init__(self, link: Link, stream: Stream, number: int, speaker: Speaker) -> None:
        self.stream, self.number, self.speaker = stream, number, speaker
        self.joined = False
        self._link = link

    def send(self, message: pb.PeerMessage) -> None:
        """Have a message sent, after those before it; if the stream has ended, it is dropped."""
        if self.number:
            message.channel = self.number
        self.stream.send(message)

    def tend(self) -> None:
        """The coordinator has said welcome: from now on the stream must never be idle, nor silent for long."""
        self.joined = True
        self._link.tend(self.stream)

    def close(self) -> None:
        """Speak no more, without a goodbye."""
        self._link.close_channel(self)


class Link:
    """The way to one coordinator. Everything runs on one event loop.

    Made by `open`. `experiment` and `run_id` are the coordinator's.

    Args:
        address: `host:port` or `unix:PATH`.
        credentials: what is shown at the coordinator's door.
        several: whether several peers speak on one stream; what is refused of one of them is then not the others'
            affair.
    """

    experiment: Experiment
    run_id: str

    def __init__(self, address: str, credentials: Credentials = NOTHING, *, several: bool = False) -> None:
        self.address = address
        self._credentials = credentials
        self._several = several
        self._grpc: Any = None
        self._stub: Any = None
        self._stream: Stream | None = None
        self._left: Stream | None = None
        """The one that was left last."""
        self._channels: dict[int, Channel] = {}
        """Those of the stream, by number."""
        self._last_number = 0
        self._tended: Stream | None = None
        self._tending: set[asyncio.Task[None]] = set()
        self._orders: dict[int, SampleIds] = {}
        """Where several ask for the same, the orders of the last epochs that somebody has asked for."""
        self._ordering = asyncio.Lock()

    async def open(self, seconds: float) -> None:
        """Ask the coordinator for its experiment.

        Args:
            seconds: how long to wait for a coordinator to be there at all.

        Raises:
            UnreachableError: nobody answers at the address.
            ProtocolError: the coordinator is of another version.
            MembershipError: the coordinator does not let these credentials in.
        """
        self._grpc = self._credentials.channel(self.address, OPTIONS)
        self._stub = CoordinatorStub(self._grpc)
        request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
        try:
            shown = self._credentials.metadata
            reply = await self._stub.GetExperiment(request, timeout=seconds, wait_for_ready=True, metadata=shown)
        except grpc.aio.AioRpcError as error:
            raised = _raised(error)
            if isinstance(raised, UnreachableError):
                why = await asyncio.to_thread(self._credentials.why_not, self.address)
                why = why or ": is it running, and is this its address?"
                raise UnreachableError(f"no coordinator answers at {self.address} within {seconds:g} s{why}") from None
            raise raised from None
        self.run_id = reply.run_id
        self.experiment = loads(reply.experiment_toml, f"the experiment of {self.address}")

    async def close(self) -> None:
        """Drop the connection."""
        for tending in self._tending:
            tending.cancel()
        if self._grpc is not None:
            await self._grpc.close()
        for stream in (self._stream, self._left):
            if stream is not None:
                await stream.stop()

    @property
    def patience(self) -> float:
        """Seconds after which the coordinator itself must have said that somebody was waited for too long."""
        return self.experiment.exchange.patience + ROUND_TRIP_SECONDS

    # ---- what may be asked

    async def agree(self, peer: str, sample_ids: SampleIds) -> SampleIds:
        """Which samples all peers have, where `peer` has these; see `seam.Exchange.agree`."""
        return await self._again(lambda: self._agree(peer, sample_ids))

    async def order(self, epoch: int, samples: int) -> SampleIds:
        """An epoch's order of so many samples; see `seam.Exchange.order`."""
        async with self._ordering:
            order = self._orders.get(epoch)
            if order is None:
                order = await self._again(lambda: self._order(epoch))
                check_order(order, samples)
            if self._several:
                self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
            return order

    async def round_trip(self) -> float:
        """Seconds that a question and its answer take."""
        began = time.perf_counter()
        try:
            request, shown = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION), self._credentials.metadata
            await self._stub.GetExperiment(request, timeout=ROUND_TRIP_SECONDS, metadata=shown)
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        return time.perf_counter() - began

    async def _again(self, work: Callable[[], Awaitable[SampleIds]]) -> SampleIds:
        """Do it again while the coordinator is away, for as long as patience lasts."""
        give_up = time.monotonic() + self.patience
        while True:
            try:
                return await work()
            except UnreachableError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _order(self, epoch: int) -> SampleIds:
        channel = self._grpc
        try:
            request, shown = pb.GetSampleOrderRequest(epoch=epoch), self._credentials.metadata
            call = self._stub.GetSampleOrder(request, timeout=ROUND_TRIP_SECONDS, metadata=shown)
            return codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        except asyncio.CancelledError:
            if channel is self._grpc:
                raise
            raise UnreachableError(f"the coordinator at {self.address} is silent") from None  # its channel was closed

    async def _agree(self, peer: str, sample_ids: SampleIds) -> SampleIds:
        try:
            call = self._stub.AgreeSamples(timeout=self.patience, metadata=self._credentials.metadata)
            for chunk in codec.encode_held(peer, sample_ids):
                await call.write(chunk)
            await call.done_writing()
            return codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        except asyncio.InvalidStateError:  # the call was over before all was said
            raise UnreachableError(f"the coordinator at {self.address} does not answer") from None

    # ---- the stream

    def speak(self, speaker: Speaker) -> Channel:
        """A channel for `speaker`, which is to join on it; on a new stream, if none is there or only one can speak."""
        if self._stream is None or not self._several:
            call = self._stub.Exchange(wait_for_ready=True, metadata=self._credentials.metadata)
            self._stream = Stream(call, self.address, self._arrived, self._ended)
            self._channels, self._last_number = {}, 0
        if self._several:
            self._last_number += 1
        channel = Channel(self, self._stream, self._last_number, speaker)
        self._channels[channel.number] = channel
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Let a peer go without a goodbye. The coordinator knows who is there by who is on a stream."""
        if channel.stream is self._stream and channel.number in self._channels:
            del self._channels[channel.number]
            why = "another peer of this process has left its stream" if self._several else "its stream was left"
            self._ended(channel.stream, UnreachableError(why))
            self._left = channel.stream
            self._left.drop()

    def tend(self, stream: Stream) -> None:
        """Let a stream on which a peer has joined never be idle, and give it up where nothing comes any more."""
        if self._tended is not stream:
            self._tended = stream
            tending = asyncio.get_running_loop().create_task(self._tend(stream))
            self._tending.add(tending)
            tending.add_done_callback(self._tending.discard)

    def _arrived(self, message: pb.CoordinatorMessage) -> None:
        channel = self._channels.get(message.channel)
        if channel is None:
            return  # it has ended
        if not message.HasField("ended"):
            channel.speaker.arrived(message)
            return
        del self._channels[channel.number]
        refused = message.ended.HasField("refusal")
        channel.speaker.ended(from_refusal(message.ended.refusal) if refused else None)

    def _ended(self, stream: Stream, error: EntangledError | None) -> None:
        if stream is not self._stream:
            return
        channels, self._stream, self._channels = self._channels, None, {}
        for channel in channels.values():
            channel.speaker.ended(error)

    async def _tend(self, stream: Stream) -> None:
        """See `tend`. gRPC notices a connection that is gone, but not one behind which somebody else holds it."""
        heard, said, silent = stream.heard, stream.said, 0
        while silent < SILENT_TIMES:
            await asyncio.sleep(TEND_SECONDS)
            if stream is not self._stream:
                return
            silent = 0 if stream.heard != heard else silent + 1
            joined = next((channel for channel in self._channels.values() if channel.joined), None)
            if stream.said == said and joined is not None:
                joined.send(pb.PeerMessage(heartbeat=pb.Heartbeat()))
            heard, said = stream.heard, stream.said
        channel, self._grpc = self._grpc, self._credentials.channel(self.address, OPTIONS)
        self._stub = CoordinatorStub(self._grpc)
        self._ended(stream, UnreachableError(f"the coordinator at {self.address} is silent"))
        await channel.close()


def _raised(error: grpc.aio.AioRpcError) -> EntangledError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())
