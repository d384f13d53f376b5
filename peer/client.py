"""The seam over gRPC. The caller's own thread runs the event loop while it waits: no hand-over on the hot path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio
import uvloop

from entangled import PROTOCOL_VERSION, codec
from entangled.alignment import Fingerprint, Layout, Position, SampleIds, batch_digest
from entangled.distribution import Probabilities
from entangled.errors import AlignmentError, EntangledError, ProtocolError, UnreachableError
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub
from peer.exchange import SoftTarget
from peer.stream import Stream

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


class CoordinatorClient:
    """`peer.exchange.Exchange` over one stream to a coordinator.

    A broken connection is made again, for as long as the experiment's patience; what was not answered, or was answered
    but may have been lost with the coordinator, is sent again.

    Args:
        address: `host:port` or `unix:PATH`.
        peer: this peer's name in the experiment.
        connect_seconds: how long to wait for a coordinator to be there at all.

    Raises:
        UnreachableError: nobody answers at `address`.
        ProtocolError: the coordinator is of another version.
    """

    def __init__(self, address: str, peer: str, connect_seconds: float = 60.0) -> None:
        self.peer = peer
        self.address = address
        self._instance = uuid.uuid4().hex
        self._loop = uvloop.new_event_loop()
        self._stream: Stream | None = None
        self._fingerprint: Fingerprint | None = None
        self._layout = Layout(samples=1, batch_size=1, epochs=1)
        self._durable = 0
        self._unsettled: deque[tuple[int, pb.PeerMessage]] = deque()
        """Answered predictions that the coordinator may still lose: sent again if it comes back without them."""
        try:
            self.experiment: Experiment = self._run(self._connect(connect_seconds))
        except EntangledError:
            self.close()
            raise

    # ---- the seam

    def join(self, fingerprint: Fingerprint) -> int:
        """See `peer.exchange.Exchange.join`."""
        self._fingerprint = fingerprint
        self._layout = self.experiment.layout(fingerprint.samples)
        return self._run(self._persistently(self._join))

    def order(self, epoch: int) -> SampleIds:
        """See `peer.exchange.Exchange.order`."""
        return self._run(self._persistently(lambda: self._order(epoch)))

    def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `peer.exchange.Exchange.exchange`."""
        digest = batch_digest(position, sample_ids)
        message = codec.encode_prediction(position, digest, prediction)
        target = self._run(self._persistently(lambda: self._exchange(position, message)))
        if target.digest != digest:
            raise AlignmentError(
                f"the coordinator answered {position} with another batch",
                expected=f"batch digest {digest.hex()}",
                got=f"batch digest {target.digest.hex()}",
            )
        self._unsettled.append((self._layout.index(position), message))
        return SoftTarget(target.probabilities, target.weight)

    def settle(self, complete: int) -> None:
        """See `peer.exchange.Exchange.settle`."""
        self._run(self._persistently(lambda: self._settle(complete)))

    def forget(self, complete: int) -> None:
        """See `peer.exchange.Exchange.forget`."""
        with contextlib.suppress(UnreachableError):  # it can wait: the next one says as much and more
            self._run(self._write(pb.PeerMessage(settled=pb.Settled(complete=complete))))

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `peer.exchange.Exchange.report`."""
        metrics = pb.Metrics(epoch=position.epoch, step=position.step, values=values, epoch_end=epoch_end)
        with contextlib.suppress(UnreachableError):  # only for people to look at; what matters comes with `finish`
            self._run(self._write(pb.PeerMessage(metrics=metrics)))

    def finish(self, values: dict[str, float]) -> None:
        """See `peer.exchange.Exchange.finish`."""
        if self._unsettled:
            self.settle(self._unsettled[-1][0] + 1)
        self._run(self._persistently(lambda: self._finish(values)))
        self.close()

    def fail(self, reason: str) -> None:
        """See `peer.exchange.Exchange.fail`."""
        try:
            if self._stream is not None and not self._stream.done:
                self._run(self._leave(reason))
        except (EntangledError, RuntimeError):
            pass  # the coordinator is gone, or knows already
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        if not self._loop.is_closed():
            self._run(self._channel.close())
            self._loop.close()

    # ---- on the loop

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    async def _connect(self, seconds: float) -> Experiment:
        self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        self._stub: Any = CoordinatorStub(self._channel)
        request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
        try:
            reply = await self._stub.GetExperiment(request, timeout=seconds, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raised = _raised(error)
            if isinstance(raised, UnreachableError):
                raise UnreachableError(f"no coordinator answers at {self.address} within {seconds:g} s") from None
            raise raised from None
        self.run_id: str = reply.run_id
        return loads(reply.experiment_toml, f"the experiment of {self.address}")

    async def _persistently(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do `work`; where the coordinator is away, join it again and do it again, for as long as patience lasts."""
        give_up = time.monotonic() + self.experiment.exchange.patience + ROUND_TRIP_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(self._loop.time() + max(give_up - time.monotonic(), 0.0)):
                    return await work()
            except UnreachableError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                with contextlib.suppress(UnreachableError, TimeoutError):  # the next round says so, too
                    await self._join()
            except TimeoutError:
                raise UnreachableError(f"the coordinator at {self.address} does not answer any more") from None

    async def _join(self) -> int:
        if self._fingerprint is None:
            raise ProtocolError("join before anything else")
        self._stream = Stream(self._stub.Exchange(wait_for_ready=True), self.address)
        join = pb.Join(
            protocol_version=PROTOCOL_VERSION,
            peer=self.peer,
            instance=self._instance,
            origin=f"{socket.gethostname()} process {os.getpid()}",
            fingerprint=codec.encode_fingerprint(self._fingerprint),
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
        for index, prediction in self._unsettled:
            if index >= message.welcome.complete:
                await self._write(prediction)
        return message.welcome.complete

    async def _order(self, epoch: int) -> SampleIds:
        try:
            call = self._stub.GetSampleOrder(pb.GetSampleOrderRequest(epoch=epoch), timeout=ROUND_TRIP_SECONDS)
            return codec.decode_order([chunk async for chunk in call])
        except grpc.aio.AioRpcError as error:
            raise _raised(error) from None

    async def _exchange(self, position: Position, message: pb.PeerMessage) -> codec.SoftTarget:
        await self._write(message)
        while True:
            reply = await self._read()
            if reply.WhichOneof("kind") == "soft_target":
                target = codec.decode_soft_target(reply.soft_target)
                if target.position == position:
                    return target
                if target.position > position:
                    raise AlignmentError(
                        "the coordinator answers another batch", expected=str(position), got=str(target.position)
                    )  # one before this is the answer to a prediction that was sent again

    async def _settle(self, complete: int) -> None:
        while self._durable < complete:
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
        if self._stream is None:
            raise ProtocolError("join before anything else")
        message = await self._stream.read()
        if message is None:
            raise await self._stream.why()
        if message.WhichOneof("kind") == "durable":
            self._durable = message.durable.complete
            while self._unsettled and self._unsettled[0][0] < self._durable:
                self._unsettled.popleft()
        return message


def _raised(error: grpc.aio.AioRpcError) -> EntangledError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())
