"""One peer's stream to a coordinator, asynchronous: makes it again when it breaks, and repeats what may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, NamedTuple

import grpc
import grpc.aio

from entangled import PROTOCOL_VERSION, codec, faults
from entangled.alignment import Fingerprint, Layout, Position, SampleIds, batch_digest, check_order
from entangled.credentials import NOTHING, Credentials
from entangled.distribution import Probabilities
from entangled.errors import AlignmentError, EntangledError, PredictionError, ProtocolError, UnreachableError
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.participation.seam import SoftTarget
from entangled.participation.stream import Stream
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

Outcome = SoftTarget | EntangledError

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

ROUND_TRIPS = 5
"""Measured; their median counts."""

LEAVE_SECONDS = 5.0
"""How long a goodbye may take."""


class _InFlight(NamedTuple):
    """A prediction that was sent, and is not answered."""

    digest: bytes
    message: pb.PeerMessage


class Connection:
    """What `seam.Exchange` is, with `await`, over one stream to a coordinator. Everything runs on one event loop.

    A stream that breaks is made again, in the background, for as long as the experiment's patience; what is in flight,
    and what was answered but may have been lost with the coordinator, is sent again, in order.

    Made by `open`. `experiment` and `run_id` are the coordinator's.
    """

    experiment: Experiment
    run_id: str

    def __init__(self, address: str, peer: str, credentials: Credentials = NOTHING) -> None:
        self.peer = peer
        self.address = address
        self._credentials = credentials
        self._instance = uuid.uuid4().hex
        self._channel: Any = None
        self._stub: Any = None
        self._stream: Stream | None = None
        self._joining: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None
        self._joined = False
        self._welcome: pb.Welcome | None = None
        self._broken: EntangledError | None = None
        """Why the stream that was to be joined has ended."""
        self._error: EntangledError | None = None
        """Why nothing can go on."""
        self._leaving = self._left = False
        self.decided: int | None = None
        """The run's look-ahead; None before it is known."""
        self._pace: pb.Pace | None = None
        self._fingerprint: Fingerprint | None = None
        self._encoding = codec.FLOAT32
        self._layout = Layout(samples=1, batch_size=1, epochs=1)
        self._complete = self._durable = 0
        self._in_flight: dict[int, _InFlight] = {}
        """By index, in the order in which they were sent."""
        self._answers: dict[int, SoftTarget] = {}
        """That nobody has asked for yet."""
        self._asking: dict[int, Callable[[Outcome], None]] = {}
        """Who is to be told of an answer when it comes."""
        self._unsettled: deque[tuple[int, pb.PeerMessage]] = deque()
        """Answered predictions that the coordinator may still lose: sent again if it comes back without them."""
        self._waiters: list[asyncio.Future[None]] = []

    async def open(self, seconds: float) -> None:
        """Ask the coordinator for its experiment.

        Args:
            seconds: how long to wait for a coordinator to be there at all.

        Raises:
            UnreachableError: nobody answers at the address.
            ProtocolError: the coordinator is of another version.
            MembershipError: the coordinator does not let these credentials in.
        """
        self._channel = self._credentials.channel(self.address, OPTIONS)
        self._stub = CoordinatorStub(self._channel)
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
        for task in (self._joining, self._tending):
            if task is not None:
                task.cancel()
        if self._channel is not None:
            await self._channel.close()
        if self._stream is not None:
            await self._stream.stop()

    @property
    def patience(self) -> float:
        """Seconds after which the coordinator itself must have said that somebody was waited for too long."""
        return self.experiment.exchange.patience + ROUND_TRIP_SECONDS

    # ---- the seam, with `await`

    async def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        self._fingerprint, self._error = fingerprint, None
        self._encoding = codec.encoding(self.experiment.exchange.encoding)
        self._layout = self.experiment.layout(fingerprint.samples)
        self._rejoin()
        await self._until(lambda: self._joined, self.patience)
        return self._complete

    async def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        return await self._again(lambda: self._agree(sample_ids))

    async def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return await self._again(lambda: self._order(epoch))

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

    async def decide(self, step_seconds: float) -> int:
        """See `seam.Exchange.lookahead`; tells the coordinator what a step and a round trip take, and waits."""
        round_trip = median([await self._round_trip() for _ in range(ROUND_TRIPS)])
        self._pace = pb.Pace(step_us=round(step_seconds * 1e6), round_trip_us=round(round_trip * 1e6))
        self._say(pb.PeerMessage(pace=self._pace))
        await self._until(lambda: self.decided is not None, self.patience)
        return self.decided or 0

    async def _round_trip(self) -> float:
        began = time.perf_counter()
        try:
            request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
            await self._stub.GetExperiment(request, timeout=ROUND_TRIP_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        return time.perf_counter() - began

    async def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        self.post(*self.prepared(position, sample_ids, prediction))
        self._raise()

    async def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        index = self.index(position)
        if index not in self._answers:
            self._raise()
            if index not in self._in_flight:
                raise _not_submitted(position)
            await self._until(lambda: index in self._answers, self.patience)
        return self._answers.pop(index)

    async def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `seam.Exchange.exchange`."""
        await self.submit(position, sample_ids, prediction)
        return await self.result(position)

    async def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        await self._until(lambda: self._durable >= complete, self.patience)

    async def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        self._say(pb.PeerMessage(settled=pb.Settled(complete=complete)))

    async def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        metrics = pb.Metrics(epoch=position.epoch, step=position.step, values=values, epoch_end=epoch_end)
        self._say(pb.PeerMessage(metrics=metrics))

    async def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        if self._unsettled:
            await self.settle(self._unsettled[-1][0] + 1)
        give_up = time.monotonic() + self.patience
        end = self._layout.position(self._layout.positions - 1)
        metrics = pb.Metrics(epoch=end.epoch, step=end.step, values=values, final=True)
        while not self._left:
            await self._until(lambda: self._joined, self.patience)
            self._say(pb.PeerMessage(metrics=metrics))
            try:
                await self._leave("")
            except UnreachableError:
                if time.monotonic() > give_up:
                    raise
        await self.close()

    async def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        with contextlib.suppress(EntangledError, RuntimeError):  # the coordinator is gone, or knows already
            if self._stream is not None:
                await self._leave(reason)
        await self.close()

    # ---- the hot path, without `await`: an exchange costs no task and no timer

    def index(self, position: Position) -> int:
        """Of a position in this run."""
        return self._layout.index(position)

    def prepared(
        self, position: Position, sample_ids: SampleIds, prediction: Probabilities
    ) -> tuple[int, bytes, pb.PeerMessage]:
        """A prediction as `post` takes it. Touches nothing, so that any thread may do it."""
        digest = batch_digest(position, sample_ids)
        return (
            self._layout.index(position),
            digest,
            codec.encode_prediction(position, digest, prediction, self._encoding),
        )

    def post(self, index: int, digest: bytes, message: pb.PeerMessage) -> None:
        """Publish what `prepared` gave."""
        if self._fingerprint is None:
            self._fail(ProtocolError("join before anything else", expected="join", got="prediction"))
            return
        self._in_flight[index] = _InFlight(digest, message)
        self._say(message)

    def ask(self, position: Position, tell: Callable[[Outcome], None]) -> None:
        """Have the answer for a position that was posted told as soon as it is there, or the error why it cannot be."""
        index = self._layout.index(position)
        if index in self._answers:
            tell(self._answers.pop(index))
        elif self._error is not None:
            tell(self._error)
        elif index in self._in_flight:
            self._asking[index] = tell
        else:
            tell(_not_submitted(position))

    def answered(self, position: Position) -> SoftTarget | None:
        """The answer for a position if it is there already. Any one thread may ask."""
        return self._answers.pop(self._layout.index(position), None)

    # ---- what comes

    def _arrived(self, message: pb.CoordinatorMessage) -> None:
        match message.WhichOneof("kind"):
            case "soft_target":
                try:
                    self._take(codec.decode_soft_target(message.soft_target))
                except EntangledError as error:
                    self._fail(error)
            case "durable":
                self._durable = message.durable.complete
                while self._unsettled and self._unsettled[0][0] < self._durable:
                    self._unsettled.popleft()
            case "welcome":
                self._welcome = message.welcome
                if message.welcome.HasField("lookahead"):
                    self.decided = message.welcome.lookahead
            case "lookahead":
                self.decided = message.lookahead.batches
            case _:
                return
        self._wake()

    def _take(self, target: codec.SoftTarget) -> None:
        """An answer: to what is in flight, or once more to what was answered and sent again."""
        index = self._layout.index(target.position)
        asked = self._in_flight.get(index)
        if asked is None:
            if self._in_flight and index > max(self._in_flight):
                waited_for = self._layout.position(min(self._in_flight))
                raise AlignmentError(
                    "the coordinator answers another batch", expected=str(waited_for), got=str(target.position)
                )
            return
        if target.digest != asked.digest:
            raise AlignmentError(
                f"the coordinator answered {target.position} with another batch",
                expected=f"batch digest {asked.digest.hex()}",
                got=f"batch digest {target.digest.hex()}",
            )
        shape = asked.message.prediction.rows, asked.message.prediction.classes
        if target.probabilities.shape != shape or not math.isfinite(target.weight):
            raise PredictionError(
                f"the coordinator's soft target for {target.position} is none",
                expected=f"{shape[0]} × {shape[1]} probabilities, and a finite λ",
                got=f"{' × '.join(map(str, target.probabilities.shape))}, λ {target.weight}",
            )
        del self._in_flight[index]
        self._unsettled.append((index, asked.message))
        answer, tell = SoftTarget(target.probabilities, target.weight), self._asking.pop(index, None)
        if tell is None:
            self._answers[index] = answer
        else:
            tell(answer)

    def _ended(self, stream: Stream, error: EntangledError | None) -> None:
        if stream is not self._stream:
            return
        self._stream, self._joined = None, False
        if error is None and self._leaving:
            self._left = True
            self._wake()
            return
        error = self._broken = error or UnreachableError("the coordinator has ended the stream")
        if not isinstance(error, UnreachableError):
            self._fail(error)
        elif self._joining is None or self._joining.done():
            self._rejoin()
        self._wake()

    def _fail(self, error: EntangledError) -> None:
        """Nothing can go on; whoever waits hears why."""
        self._error = error
        asking, self._asking = self._asking, {}
        for tell in asking.values():
            tell(error)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until `done`, which what comes may change; UnreachableError after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    self._raise()
                    if self._fingerprint is None:
                        raise ProtocolError("join before anything else")
                    self._waiters.append(asyncio.get_running_loop().create_future())
                    await self._waiters[-1]
        except TimeoutError:
            raise UnreachableError(
                f"the coordinator at {self.address} does not answer any more; go on by the same command when it does"
            ) from None

    # ---- what goes

    def _say(self, message: pb.PeerMessage) -> None:
        """Send if there is somebody who listens; else it is told, if it matters, at the next joining."""
        if self._fingerprint is None:
            raise ProtocolError("join before anything else", expected="join", got=str(message.WhichOneof("kind")))
        if self._joined and self._stream is not None:
            self._stream.send(message)

    def _rejoin(self) -> None:
        self._joined = self._leaving = False
        if self._fingerprint is not None:
            if self._joining is not None:
                self._joining.cancel()
            self._joining = asyncio.get_running_loop().create_task(self._keep_joining(self._fingerprint))

    async def _keep_joining(self, fingerprint: Fingerprint) -> None:
        give_up = time.monotonic() + self.patience
        while True:
            try:
                return await self._join(fingerprint)
            except UnreachableError as error:
                if time.monotonic() > give_up:
                    return self._fail(error)
                await asyncio.sleep(RETRY_SECONDS)
            except EntangledError as error:
                return self._fail(error)

    async def _join(self, fingerprint: Fingerprint) -> None:
        self._welcome = self._broken = None
        call = self._stub.Exchange(wait_for_ready=True, metadata=self._credentials.metadata)
        stream = self._stream = Stream(call, self.address, self._arrived, self._ended)
        stream.send(
            pb.PeerMessage(
                join=pb.Join(
                    protocol_version=PROTOCOL_VERSION,
                    peer=self.peer,
                    instance=self._instance,
                    origin=f"{socket.gethostname()} process {os.getpid()}",
                    fingerprint=codec.encode_fingerprint(fingerprint),
                )
            )
        )
        await self._until(lambda: bool(self._welcome or self._broken), ROUND_TRIP_SECONDS)
        if self._welcome is None:
            raise self._broken or UnreachableError(f"the coordinator at {self.address} does not answer")
        if self._welcome.run_id != self.run_id:
            raise ProtocolError(
                "another run has taken this one's place", expected=self.run_id, got=self._welcome.run_id
            )
        faults.point(self.peer, "after welcome")
        self._complete = self._welcome.complete
        for index, prediction in self._unsettled:
            if index >= self._complete:
                stream.send(prediction)
        for waiting in self._in_flight.values():
            stream.send(waiting.message)
        if self._pace is not None and self.decided is None:
            stream.send(pb.PeerMessage(pace=self._pace))
        self._joined = True
        self._tending = asyncio.get_running_loop().create_task(self._tend(stream))
        self._wake()

    async def _tend(self, stream: Stream) -> None:
        """Let a stream never be idle, and give it up where nothing comes any more.

        gRPC notices a connection that is gone, but not one behind which somebody else goes on holding it.
        """
        heard, said, silent = stream.heard, stream.said, 0
        while silent < SILENT_TIMES:
            await asyncio.sleep(TEND_SECONDS)
            if stream is not self._stream:
                return
            silent = 0 if stream.heard != heard else silent + 1
            if stream.said == said:
                stream.send(pb.PeerMessage(heartbeat=pb.Heartbeat()))
            heard, said = stream.heard, stream.said
        channel, self._channel = self._channel, self._credentials.channel(self.address, OPTIONS)
        self._stub = CoordinatorStub(self._channel)
        self._ended(stream, UnreachableError(f"the coordinator at {self.address} is silent"))
        await channel.close()

    async def _order(self, epoch: int) -> SampleIds:
        channel = self._channel
        try:
            request, shown = pb.GetSampleOrderRequest(epoch=epoch), self._credentials.metadata
            call = self._stub.GetSampleOrder(request, timeout=ROUND_TRIP_SECONDS, metadata=shown)
            order = codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        except asyncio.CancelledError:
            if channel is self._channel:
                raise
            raise UnreachableError(f"the coordinator at {self.address} is silent") from None  # its channel was closed
        check_order(order, self._layout.samples)
        return order

    async def _agree(self, sample_ids: SampleIds) -> SampleIds:
        try:
            call = self._stub.AgreeSamples(timeout=self.patience, metadata=self._credentials.metadata)
            for chunk in codec.encode_held(self.peer, sample_ids):
                await call.write(chunk)
            await call.done_writing()
            return codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None
        except asyncio.InvalidStateError:  # the call was over before all was said
            raise UnreachableError(f"the coordinator at {self.address} does not answer") from None

    async def _leave(self, reason: str) -> None:
        """Say goodbye and wait until the coordinator has heard it, which is when it ends the stream."""
        self._broken, self._leaving = None, True
        self._say(pb.PeerMessage(leave=pb.Leave(failure=reason)))
        await self._until(lambda: self._left or self._broken is not None, LEAVE_SECONDS)


def _not_submitted(position: Position) -> ProtocolError:
    return ProtocolError(f"no prediction was submitted for {position}, or its result has been given already")


def _raised(error: grpc.aio.AioRpcError) -> EntangledError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())
