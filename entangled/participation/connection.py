"""One peer over a link to a coordinator, asynchronous: joins again when it breaks, and repeats what may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from entangled import PROTOCOL_VERSION, codec, faults
from entangled.alignment import Fingerprint, Layout, Position, SampleIds, batch_digest
from entangled.distribution import Probabilities
from entangled.errors import AlignmentError, EntangledError, PredictionError, ProtocolError, UnreachableError
from entangled.participation.link import RETRY_SECONDS, ROUND_TRIP_SECONDS, Channel, Link
from entangled.participation.seam import SoftTarget
from entangled.v1 import exchange_pb2 as pb

Outcome = SoftTarget | EntangledError

ROUND_TRIPS = 5
"""Measured; their median counts."""

LEAVE_SECONDS = 5.0
"""How long a goodbye may take."""


class Prepared(NamedTuple):
    """A prediction as it is sent, and what its answer must fit."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    digest: bytes
    shape: tuple[int, ...]
    message: pb.PeerMessage


class Connection:
    """What `seam.Exchange` is, with `await`, over a link to a coordinator. Everything runs on one event loop.

    When the link's stream breaks, this peer joins again on the next one, in the background, for as long as the
    experiment's patience; what is in flight, and what was answered but may have been lost with the coordinator, is sent
    again, in order.

    Args:
        link: an open one.
        peer: this peer's name in the experiment.
    """

    def __init__(self, link: Link, peer: str) -> None:
        self.peer = peer
        self._link = link
        self._instance = uuid.uuid4().hex
        self._channel: Channel | None = None
        self._joining: asyncio.Task[None] | None = None
        self._joined = False
        self._welcome: pb.Welcome | None = None
        self._broken: EntangledError | None = None
        """Why the channel that was to be joined has ended."""
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
        self._in_flight: dict[int, Prepared] = {}
        """By index, in the order in which they were sent."""
        self._answers: dict[int, SoftTarget] = {}
        """That nobody has asked for yet."""
        self._asking: dict[int, Callable[[Outcome], None]] = {}
        """Who is to be told of an answer when it comes."""
        self._unsettled: deque[tuple[int, pb.PeerMessage]] = deque()
        """Answered predictions that the coordinator may still lose: sent again if it comes back without them."""
        self._waiters: list[asyncio.Future[None]] = []

    async def close(self) -> None:
        """Speak no more."""
        if self._joining is not None:
            self._joining.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    # ---- the seam, with `await`

    async def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        self._fingerprint, self._error = fingerprint, None
        self._encoding = codec.encoding(self._link.experiment.exchange.encoding)
        self._layout = self._link.experiment.layout(fingerprint.samples)
        self._rejoin()
        await self._until(lambda: self._joined, self._link.patience)
        return self._complete

    async def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        return await self._link.agree(self.peer, sample_ids)

    async def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return await self._link.order(epoch, self._layout.samples)

    async def decide(self, step_seconds: float) -> int:
        """See `seam.Exchange.lookahead`; tells the coordinator what a step and a round trip take, and waits."""
        round_trip = median([await self._link.round_trip() for _ in range(ROUND_TRIPS)])
        self._pace = pb.Pace(step_us=round(step_seconds * 1e6), round_trip_us=round(round_trip * 1e6))
        self._say(pb.PeerMessage(pace=self._pace))
        await self._until(lambda: self.decided is not None, self._link.patience)
        return self.decided or 0

    async def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        self.post(self.prepared(position, sample_ids, prediction))
        self._raise()

    async def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Outcome] = loop.create_future()
        self.ask(position, lambda outcome: None if told.done() else told.set_result(outcome))
        deadline = loop.call_later(self._link.patience, self._give_up, position)
        try:
            outcome = await told
        except asyncio.CancelledError:  # it can be asked for again
            self._asking.pop(self.index(position), None)
            if told.done() and not told.cancelled() and isinstance(outcome := told.result(), SoftTarget):
                self._answers[self.index(position)] = outcome
            raise
        finally:
            deadline.cancel()
        if isinstance(outcome, EntangledError):
            raise outcome
        return outcome

    def _give_up(self, position: Position) -> None:
        tell = self._asking.pop(self.index(position), None)
        if tell is not None:
            tell(UnreachableError(f"the coordinator at {self._link.address} does not answer {position} any more"))

    async def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `seam.Exchange.exchange`."""
        await self.submit(position, sample_ids, prediction)
        return await self.result(position)

    async def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        await self._until(lambda: self._durable >= complete, self._link.patience)

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
        give_up = time.monotonic() + self._link.patience
        end = self._layout.position(self._layout.positions - 1)
        metrics = pb.Metrics(epoch=end.epoch, step=end.step, values=values, final=True)
        while not self._left:
            await self._until(lambda: self._joined, self._link.patience)
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
            if self._channel is not None:
                await self._leave(reason)
        await self.close()

    # ---- the hot path, without `await`: an exchange costs no task and no timer

    def index(self, position: Position) -> int:
        """Of a position in this run."""
        return self._layout.index(position)

    def prepared(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> Prepared:
        """A prediction as `post` takes it. Touches nothing, so that any thread may do it."""
        digest = batch_digest(position, sample_ids)
        message = codec.encode_prediction(position, digest, prediction, self._encoding)
        return Prepared(self._layout.index(position), digest, prediction.shape, message)

    def post(self, prepared: Prepared) -> None:
        """Publish what `prepared` gave."""
        if self._fingerprint is None:
            self._fail(ProtocolError("join before anything else", expected="join", got="prediction"))
            return
        self._in_flight[prepared.index] = prepared
        if self._joined and self._channel is not None:
            self._channel.send(prepared.message)

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

    # ---- what comes

    def arrived(self, message: pb.CoordinatorMessage) -> None:
        """See `link.Speaker`."""
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
        if self._waiters:
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
        if target.probabilities.shape != asked.shape or not math.isfinite(target.weight):
            raise PredictionError(
                f"the coordinator's soft target for {target.position} is none",
                expected=f"{' × '.join(map(str, asked.shape))} probabilities, and a finite λ",
                got=f"{' × '.join(map(str, target.probabilities.shape))}, λ {target.weight}",
            )
        del self._in_flight[index]
        self._unsettled.append((index, asked.message))
        answer, tell = SoftTarget(target.probabilities, target.weight), self._asking.pop(index, None)
        if tell is None:
            self._answers[index] = answer
        else:
            tell(answer)

    def ended(self, error: EntangledError | None) -> None:
        """See `link.Speaker`."""
        self._channel, self._joined = None, False
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
            gone = f"the coordinator at {self._link.address} does not answer any more"
            raise UnreachableError(f"{gone}; go on by the same command when it does") from None

    # ---- what goes

    def _say(self, message: pb.PeerMessage) -> None:
        """Send if there is somebody who listens; else it is told, if it matters, at the next joining."""
        if self._fingerprint is None:
            raise ProtocolError("join before anything else", expected="join", got=str(message.WhichOneof("kind")))
        if self._joined and self._channel is not None:
            self._channel.send(message)

    def _rejoin(self) -> None:
        self._joined = self._leaving = False
        if self._fingerprint is not None:
            if self._joining is not None:
                self._joining.cancel()
            self._joining = asyncio.get_running_loop().create_task(self._keep_joining(self._fingerprint))

    async def _keep_joining(self, fingerprint: Fingerprint) -> None:
        give_up = time.monotonic() + self._link.patience
        while True:
            try:
                return await self._join(fingerprint)
            except UnreachableError as error:
                if self._channel is not None:
                    self._channel.close()
                if time.monotonic() > give_up:
                    return self._fail(error)
                await asyncio.sleep(RETRY_SECONDS)
            except EntangledError as error:
                return self._fail(error)

    async def _join(self, fingerprint: Fingerprint) -> None:
        self._welcome = self._broken = None
        channel = self._channel = self._link.speak(self)
        channel.send(
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
        if self._welcome is None or self._broken is not None:
            raise self._broken or UnreachableError(f"the coordinator at {self._link.address} does not answer")
        if self._welcome.run_id != self._link.run_id:
            raise ProtocolError(
                "another run has taken this one's place", expected=self._link.run_id, got=self._welcome.run_id
            )
        faults.point(self.peer, "after welcome")
        self._complete = self._welcome.complete
        for index, prediction in self._unsettled:
            if index >= self._complete:
                channel.send(prediction)
        for waiting in self._in_flight.values():
            channel.send(waiting.message)
        if self._pace is not None and self.decided is None:
            channel.send(pb.PeerMessage(pace=self._pace))
        self._joined = True
        channel.tend()
        self._wake()

    async def _leave(self, reason: str) -> None:
        """Say goodbye and wait until the coordinator has heard it, which is when it ends the channel."""
        self._broken, self._leaving = None, True
        self._say(pb.PeerMessage(leave=pb.Leave(failure=reason)))
        await self._until(lambda: self._left or self._broken is not None, LEAVE_SECONDS)


def _not_submitted(position: Position) -> ProtocolError:
    return ProtocolError(f"no prediction was submitted for {position}, or its result has been given already")
