"""One stream to the coordinator, which always knows why it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

from entangled.errors import EntangledError, UnreachableError
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb

TURNS = 5
"""Of the event loop, in which what came while nobody ran it is taken in."""

WHY_SECONDS = 1.0
"""How long the status of a stream that has ended is waited for."""


class Stream:
    """A call of `Exchange`. Reads ahead: gRPC gives the status only to those who have read every message.

    A write onto a stream that the coordinator has ended would put gRPC's own status in the place of the coordinator's,
    so before each write what has come is taken in.

    Args:
        call: the bidirectional call of grpc.aio.
        address: of the coordinator, for messages.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._call, self._address = call, address
        self._end: asyncio.Future[EntangledError] = asyncio.get_running_loop().create_future()
        self._arrived: deque[pb.CoordinatorMessage] = deque()
        self._reading: asyncio.Task[Any] | None = None
        call.add_done_callback(self._note_end)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._call.done()

    async def write(self, message: pb.PeerMessage) -> None:
        """Send a message; the error for which the coordinator has ended the stream, if it has."""
        await self._take_in()
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self.why() from None

    async def read(self) -> pb.CoordinatorMessage | None:
        """The next message, None at the stream's end; the error for which it was ended, if it was."""
        if self._arrived:
            return self._arrived.popleft()
        return await self._next()

    async def why(self) -> EntangledError:
        """Why the stream has ended."""
        try:
            async with asyncio.timeout(WHY_SECONDS):
                return await asyncio.shield(self._end)
        except TimeoutError:
            return UnreachableError(f"the stream to {self._address} broke off")

    async def _take_in(self) -> None:
        while True:
            reading = self._begin_reading()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not reading.done():
                return
            message = await self._next()
            if message is None:
                raise await self.why()
            self._arrived.append(message)

    def _begin_reading(self) -> asyncio.Task[Any]:
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self._call.read())
            reading.add_done_callback(_retrieve)
        return reading

    async def _next(self) -> pb.CoordinatorMessage | None:
        reading = self._begin_reading()
        try:
            message = await asyncio.shield(reading)  # a deadline ends the waiting, not the reading
        except grpc.aio.AioRpcError:
            raise await self.why() from None
        finally:
            if reading.done():
                self._reading = None
        return None if message is grpc.aio.EOF else message

    def _note_end(self, call: Any) -> None:
        """Keep the status as soon as it is there; a write that fails may put gRPC's own in its place."""
        code, details, trailing = _result(call.code()), _result(call.details()), _result(call.trailing_metadata())
        if self._end.done() or (code is grpc.StatusCode.INTERNAL and details == "Internal error from Core"):
            return
        if code is grpc.StatusCode.OK:
            self._end.set_result(UnreachableError("the coordinator has ended the stream"))
        else:
            self._end.set_result(from_status(code, details or "", trailing or ()))


def _retrieve(reading: asyncio.Task[Any]) -> None:
    """Look at the outcome of a reading that nobody may ask for any more."""
    if not reading.cancelled():
        reading.exception()


def _result(done: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that has nothing to wait for any more."""
    try:
        done.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the call is not done")
