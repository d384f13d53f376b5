"""One stream to the coordinator, which always knows why it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from entangled import codec
from entangled.errors import EntangledError, ProtocolError, UnreachableError
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb

WHY_SECONDS = 1.0
"""How long the status of a stream that has ended is waited for."""


class Stream:
    """A call of `Exchange`. Reads ahead: gRPC gives the status only to those who have read every message.

    A write onto a stream that the coordinator has ended would put gRPC's own status in the place of the coordinator's,
    so what comes is taken in as it comes. Two tasks, one that reads and one that writes, last as long as the stream: a
    task for each message would cost more than the message.

    Args:
        call: the bidirectional call of grpc.aio.
        address: of the coordinator, for messages.
        arrived: is called with each message, in order; those of a bundle one by one.
        ended: is called once, when the stream has ended, with the error why; None if the coordinator said OK.
    """

    def __init__(
        self,
        call: Any,
        address: str,
        arrived: Callable[[pb.CoordinatorMessage], None],
        ended: Callable[[Stream, EntangledError | None], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._call, self._address, self._loop = call, address, loop
        self._arrived, self._ended = arrived, ended
        self.heard = self.said = 0
        """Messages that have come, and that were sent."""
        self._why: asyncio.Future[EntangledError | None] = loop.create_future()
        self._outgoing: deque[pb.PeerMessage] = deque()
        self._idle: asyncio.Future[None] | None = None
        call.add_done_callback(self._note_end)
        self._tasks = [loop.create_task(self._read()), loop.create_task(self._write())]

    def send(self, message: pb.PeerMessage) -> None:
        """Have a message sent, after those before it. Onto a stream that has ended, it is dropped."""
        self.said += 1
        self._outgoing.append(message)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def drop(self) -> None:
        """Leave it to itself, and the coordinator without a goodbye; `ended` is not called any more."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()

    async def stop(self) -> None:
        """Read and write no more; `ended` is not called any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message is None:  # which is how gRPC says that it cannot be decoded
                    if not self._why.done():
                        what = f"what the coordinator at {self._address} sends is no message"
                        self._why.set_result(ProtocolError(what))
                    self._call.cancel()
                    break
                self.heard += 1
                for spoken in message.bundle.messages if message.HasField("bundle") else (message,):
                    self._arrived(spoken)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the status says it better
        self._tasks[1].cancel()
        self._ended(self, await self._reason())

    async def _write(self) -> None:
        while True:
            while self._outgoing:
                try:
                    await self._call.write(codec.next_spoken(self._outgoing, codec.bundle_of_peers))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the reading sees the end, too
            self._idle = self._loop.create_future()
            await self._idle

    async def _reason(self) -> EntangledError | None:
        try:
            async with asyncio.timeout(WHY_SECONDS):
                return await asyncio.shield(self._why)
        except TimeoutError:
            return UnreachableError(f"the stream to {self._address} broke off")

    def _note_end(self, call: Any) -> None:
        """Keep the status as soon as it is there; a write that fails may put gRPC's own in its place."""
        code, details, trailing = _result(call.code()), _result(call.details()), _result(call.trailing_metadata())
        if self._why.done() or (code is grpc.StatusCode.INTERNAL and details == "Internal error from Core"):
            return
        self._why.set_result(None if code is grpc.StatusCode.OK else from_status(code, details or "", trailing or ()))


def _result(done: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that has nothing to wait for any more."""
    try:
        done.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the call is not done")
