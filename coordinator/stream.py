"""One Exchange stream on the coordinator's side: what waits to be sent on it, and how it shall end. No task runs it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from coordinator.decoding import unreadable
from entangled import codec, sending
from entangled.errors import EntangledError
from entangled.v1 import exchange_pb2 as pb

QUEUED, QUEUED_BYTES = 64, 64 * 1024 * 1024
"""Messages that may wait for one reader, whatever they weigh, and their weight. From who does not read, nothing more
is read, either."""


class Stream:
    """One Exchange stream: what comes on it, what is to be sent on it, and whether and how it shall end.

    Args:
        context: of the call; see `serving.Call`.
        take: takes in a message that has come. An error of ours that it raises is how the stream ends.
    """

    def __init__(self, context: Any, take: Callable[[Stream, pb.PeerMessage], None]) -> None:
        self.connections: dict[int, int] = {}
        """The session's connection for each of the stream's channels."""
        self.outgoing: deque[sending.ToPeer] = deque()
        self.ended = False
        self.error: EntangledError | None = None
        self.sent_at = time.monotonic()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when there is nothing more to come, or to be sent."""
        self._context, self._take = context, take
        self._reading = self._writing = self._due = False
        self._written: asyncio.Future[None] | None = None

    def read(self) -> None:
        """Read on, if what waits to be sent is not too much."""
        crowded = len(self.outgoing) > QUEUED and self._is_crowded()
        if not self._reading and not crowded and not self.over.done():
            self._reading = True
            self._context.receive(self._came)

    def send(self, message: sending.ToPeer) -> None:
        """Have a message sent, after those before it. On a channel, what is sent in one turn goes as a bundle."""
        if not message.channel and not self._writing and not self.outgoing:
            self._hand_over(message)
            return
        self.outgoing.append(message)
        if not message.channel:
            self._write()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._write)

    def send_durable(self, message: pb.CoordinatorMessage) -> None:
        """The same, in the place of one that still waits and says less."""
        if self.outgoing and _repeats(self.outgoing[-1], message):
            self.outgoing.pop()
        self.send(message)

    def end(self, error: EntangledError | None = None) -> None:
        """Send what waits and no more; the first error that is given is the stream's."""
        self.ended, self.error = True, self.error or error
        self._write()

    async def written(self, seconds: float) -> None:
        """Wait until all that waits is sent, at most so many seconds."""
        if self._writing:
            self._written = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._written}, timeout=seconds)

    def _is_crowded(self) -> bool:
        return len(self.outgoing) * self.outgoing[-1].ByteSize() > QUEUED_BYTES and not self.ended

    def _came(self, found: Any) -> None:
        self._reading = False
        try:
            if isinstance(found, DecodeError):
                raise unreadable(found) from None
            if isinstance(found, EntangledError):
                raise found
            if found is None:
                self._finish(None)
                return
            for spoken in codec.unbundled(found):
                if not self.ended:
                    self._take(self, spoken)
        except Exception as error:  # whoever waits for the end hears of it
            self._finish(error)
            return
        self.read()

    def _write(self) -> None:
        self._due = False
        if self._writing:
            return
        if self.outgoing:
            self._hand_over(sending.next_spoken(self.outgoing, sending.bundle_to_peers))
        elif self.ended:
            self._finish(None)

    def _hand_over(self, message: sending.ToPeer) -> None:
        self._writing = True
        self._context.send(message, self._sent)

    def _sent(self) -> None:
        self._writing = False
        self.sent_at = time.monotonic()
        self._write()
        if not self._writing and self._written is not None and not self._written.done():
            self._written.set_result(None)
        self.read()

    def _finish(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


def _repeats(before: sending.ToPeer, message: pb.CoordinatorMessage) -> bool:
    return (
        isinstance(before, pb.CoordinatorMessage) and before.HasField("durable") and before.channel == message.channel
    )


def on_channel(channel: int, message: pb.CoordinatorMessage) -> pb.CoordinatorMessage:
    """A message to everybody for one channel of a stream; most streams have only channel 0, which is not written."""
    if channel == 0:
        return message
    copy = pb.CoordinatorMessage()
    copy.CopyFrom(message)
    copy.channel = channel
    return copy
