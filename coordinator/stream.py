"""One Exchange stream on the coordinator's side: what waits to be sent on it, and how it shall end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from entangled import codec
from entangled.errors import EntangledError
from entangled.v1 import exchange_pb2 as pb

QUEUED, QUEUED_BYTES = 64, 64 * 1024 * 1024
"""Messages that may wait for one reader, whatever they weigh, and their weight. From who does not read, nothing more
is read, either."""


class Stream:
    """One Exchange stream: what is to be sent on it, and whether and how it shall end."""

    def __init__(self) -> None:
        self.connections: dict[int, int] = {}
        """The session's connection for each of the stream's channels."""
        self.outgoing: deque[pb.CoordinatorMessage] = deque()
        self.ended = False
        self.error: EntangledError | None = None
        self.sent_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] | None = None
        self._sent = asyncio.Event()

    def send(self, message: pb.CoordinatorMessage) -> None:
        """Have a message sent, after those before it."""
        self.outgoing.append(message)
        self._wake()

    def send_durable(self, message: pb.CoordinatorMessage) -> None:
        """The same, in the place of one that still waits and says less."""
        if self.outgoing and _repeats(self.outgoing[-1], message):
            self.outgoing.pop()
        self.send(message)

    async def until_read(self) -> None:
        """Return when what waits to be sent is not too much."""
        while (waiting := len(self.outgoing)) > QUEUED and not self.ended:
            if waiting * self.outgoing[-1].ByteSize() <= QUEUED_BYTES:
                return
            self._sent.clear()
            await self._sent.wait()

    def end(self, error: EntangledError | None = None) -> None:
        """Send what waits and no more; the first error that is given is the stream's."""
        self.ended, self.error = True, self.error or error
        self._wake()
        self._sent.set()

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def write(self, context: Any) -> None:
        """Send until ended."""
        while True:
            while self.outgoing:
                await context.write(codec.next_spoken(self.outgoing, codec.bundle_to_peers))
                self.sent_at = time.monotonic()
                self._sent.set()
            if self.ended:
                return
            self._idle = self._loop.create_future()
            await self._idle


def _repeats(before: pb.CoordinatorMessage, message: pb.CoordinatorMessage) -> bool:
    return before.HasField("durable") and before.channel == message.channel


def on_channel(channel: int, message: pb.CoordinatorMessage) -> pb.CoordinatorMessage:
    """A message to everybody for one channel of a stream; most streams have only channel 0, which is not written."""
    if channel == 0:
        return message
    copy = pb.CoordinatorMessage()
    copy.CopyFrom(message)
    copy.channel = channel
    return copy
