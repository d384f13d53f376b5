"""One peer's stream to a coordinator, asynchronous: makes it again when it breaks, and repeats what may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from entangled import PROTOCOL_VERSION, codec
from entangled.alignment import Fingerprint, Layout, Position, SampleIds, batch_digest
from entangled.distribution import Probabilities
from entangled.errors import AlignmentError, EntangledError, ProtocolError, UnreachableError
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.participation.seam import SoftTarget
from entangled.participation.stream import Stream
from entangled.status import from_status
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
]
RETRY_SECONDS = 0.2
ROUND_TRIP_SECONDS = 60.0
"""How long a reply that waits for nobody else may take."""

LEAVE_SECONDS = 5.0
"""How long a goodbye may take."""


class _InFlight(NamedTuple):
    """A prediction that was sent, and is not answered."""

    digest: bytes
    message: pb.PeerMessage


class Connection:
    """What `seam.Exchange` is, with `await`, over one stream to a coordinator. One task uses it.

    A broken stream is made again, for as long as the experiment's patience; what is in flight, and what was answered
    but may have been lost with the coordinator, is sent again, in order.

    Made by `open`. `experiment` and `run_id` are the coordinator's.
    """

    experiment: Experiment
    run_id: str

    def __init__(self, address: str, peer: str) -> None:
        self.peer = peer
        self.address = address
        self._instance = uuid.uuid4().hex
        self._channel: Any = None
        self._stub: Any = None
        self._stream: Stream | None = None
        self._welcomed = False
        self._fingerprint: Fingerprint | None = None
        self._layout = Layout(samples=1, batch_size=1, epochs=1)
        self._complete = self._durable = 0
        self._in_flight: dict[int, _InFlight] = {}
        """By index, in the order in which they were sent."""
        self._answers: dict[int, SoftTarget] = {}
        """That nobody has asked for yet."""
        self._unsettled: deque[tuple[int, pb.PeerMessage]] = deque()
        """Answered predictions that the coordinator may still lose: sent again if it comes back without them."""

    async def open(self, seconds: float) -> None:
        """Ask the coordinator for its experiment.

        Args:
            seconds: how long to wait for a coordinator to be there at all.

        Raises:
            UnreachableError: nobody answers at the address.
            ProtocolError: the coordinator is of another version.
        """
        self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        self._stub = CoordinatorStub(self._channel)
        request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
        try:
            reply = await self._stub.GetExperiment(request, timeout=seconds, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raised = _raised(error)
            if isinstance(raised, UnreachableError):
                raise UnreachableError(f"no coordinator answers at {self.address} within {seconds:g} s") from None
            raise raised from None
        self.run_id = reply.run_id
        self.experiment = loads(reply.experiment_toml, f"the experiment of {self.address}")

    async def close(self) -> None:
        """Drop the connection."""
        if self._channel is not None:
            await self._channel.close()

    # ---- the seam, with `await`

    async def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        self._fingerprint = fingerprint
        self._layout = self.experiment.layout(fingerprint.samples)
        self._welcomed = False
        await self._persistently(_nothing)
        return self._complete

    async def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return await self._persistently(lambda: self._order(epoch))

    async def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        digest = batch_digest(position, sample_ids)
        message = codec.encode_prediction(position, digest, prediction)
        await self._persistently(lambda: self._write(message))
        self._in_flight[self._layout.index(position)] = _InFlight(digest, message)

    async def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        index = self._layout.index(position)
        if index not in self._answers:
            if index not in self._in_flight:
                raise ProtocolError(f"no prediction was submitted for {position}, or its result has been given already")
            await self._persistently(lambda: self._read_until(lambda: index in self._answers))
        return self._answers.pop(index)

    async def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `seam.Exchange.exchange`."""
        await self.submit(position, sample_ids, prediction)
        return await self.result(position)

    async def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        await self._persistently(lambda: self._read_until(lambda: self._durable >= complete))

    async def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        with contextlib.suppress(UnreachableError):  # it can wait: the next one says as much and more
            await self._write(pb.PeerMessage(settled=pb.Settled(complete=complete)))

    async def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        metrics = pb.Metrics(epoch=position.epoch, step=position.step, values=values, epoch_end=epoch_end)
        with contextlib.suppress(UnreachableError):  # only for people to look at; what matters comes with `finish`
            await self._write(pb.PeerMessage(metrics=metrics))

    async def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        if self._unsettled:
            await self.settle(self._unsettled[-1][0] + 1)
        await self._persistently(lambda: self._finish(values))
        await self.close()

    async def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        with contextlib.suppress(EntangledError, RuntimeError):  # the coordinator is gone, or knows already
            if self._stream is not None and not self._stream.done:
                await self._leave(reason)
        await self.close()

    # ---- one attempt each; UnreachableError where another may help

    async def _persistently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`; where the coordinator is away, join it again and do it again, for as long as patience lasts."""
        give_up = time.monotonic() + self.experiment.exchange.patience + ROUND_TRIP_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(give_up - time.monotonic(), 0.0)):
                    if not self._welcomed and self._fingerprint is not None:
                        await self._join(self._fingerprint)
                    return await work()
            except UnreachableError:
                self._welcomed = False
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            except TimeoutError:
                raise UnreachableError(f"the coordinator at {self.address} does not answer any more") from None

    async def _join(self, fingerprint: Fingerprint) -> None:
        self._stream = Stream(self._stub.Exchange(wait_for_ready=True), self.address)
        join = pb.Join(
            protocol_version=PROTOCOL_VERSION,
            peer=self.peer,
            instance=self._instance,
            origin=f"{socket.gethostname()} process {os.getpid()}",
            fingerprint=codec.encode_fingerprint(fingerprint),
        )
        try:
            async with asyncio.timeout(ROUND_TRIP_SECONDS):
                await self._write(pb.PeerMessage(join=join))
                message = await self._read()
        except TimeoutError:
            raise UnreachableError(f"the coordinator at {self.address} does not answer") from None
        if message.WhichOneof("kind") != "welcome":
            raise ProtocolError("the coordinator did not welcome", expected="welcome", got=str(message))
        if message.welcome.run_id != self.run_id:
            raise ProtocolError(
                "another run has taken this one's place", expected=self.run_id, got=message.welcome.run_id
            )
        self._complete = message.welcome.complete
        for index, prediction in self._unsettled:
            if index >= self._complete:
                await self._write(prediction)
        for waiting in self._in_flight.values():
            await self._write(waiting.message)
        self._welcomed = True

    async def _order(self, epoch: int) -> SampleIds:
        try:
            call = self._stub.GetSampleOrder(pb.GetSampleOrderRequest(epoch=epoch), timeout=ROUND_TRIP_SECONDS)
            return codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None

    async def _read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._read()

    async def _finish(self, values: dict[str, float]) -> None:
        end = self._layout.position(self._layout.positions - 1)
        metrics = pb.Metrics(epoch=end.epoch, step=end.step, values=values, final=True)
        await self._write(pb.PeerMessage(metrics=metrics))
        await self._leave("")

    async def _leave(self, reason: str) -> None:
        """Say goodbye and wait until the coordinator has heard it, which is when it ends the stream."""
        await self._write(pb.PeerMessage(leave=pb.Leave(failure=reason)))
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                while self._stream is not None and await self._stream.read() is not None:
                    pass
        except TimeoutError:
            raise UnreachableError(f"the coordinator at {self.address} has not heard the goodbye") from None

    async def _write(self, message: pb.PeerMessage) -> None:
        if self._stream is None:
            raise ProtocolError("join before anything else", expected="join", got=str(message.WhichOneof("kind")))
        await self._stream.write(message)

    async def _read(self) -> pb.CoordinatorMessage:
        """The next message, what it says taken note of."""
        if self._stream is None:
            raise ProtocolError("join before anything else")
        message = await self._stream.read()
        if message is None:
            raise await self._stream.why()
        match message.WhichOneof("kind"):
            case "soft_target":
                self._take(codec.decode_soft_target(message.soft_target))
            case "durable":
                self._durable = message.durable.complete
                while self._unsettled and self._unsettled[0][0] < self._durable:
                    self._unsettled.popleft()
            case _:
                pass
        return message

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
        del self._in_flight[index]
        self._answers[index] = SoftTarget(target.probabilities, target.weight)
        self._unsettled.append((index, asked.message))


async def _nothing() -> None:
    """To be welcome is all that is wanted."""


def _raised(error: grpc.aio.AioRpcError) -> EntangledError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())
