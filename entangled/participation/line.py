"""A link for threads: what blocks on one thread is done on another, where an event loop runs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from entangled.credentials import NOTHING, Credentials
from entangled.errors import EntangledError
from entangled.participation.link import Link

T = TypeVar("T")


class Line:
    """A link to a coordinator, and the thread with the event loop that it runs on.

    To hand a call over to the loop's thread costs a third of what it costs to start and stop a loop around each call.

    Args:
        address: `host:port` or `unix:PATH`.
        connect_seconds: how long to wait for a coordinator to be there at all.
        credentials: what is shown at the coordinator's door.
        several: whether several peers of this process share it, each with a client of its own.

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
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"line to {address}", daemon=True)
        self._thread.start()
        self.link = Link(address, credentials, several=several)
        try:
            self.run(self.link.open(connect_seconds))
        except EntangledError:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether nothing runs on it any more."""
        return self._loop.is_closed()

    def soon(self, work: Callable[..., object], *arguments: object) -> None:
        """Have `work` done on the loop's thread, and go on."""
        self._loop.call_soon_threadsafe(work, *arguments)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have `work` done on the loop's thread and wait for it; Ctrl-C ends the waiting."""
        done: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()
        self._loop.call_soon_threadsafe(self._start, work, done)
        return done.get().result()

    def close(self) -> None:
        """Drop the link; the thread ends."""
        if not self.closed:
            self.run(self.link.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _start(self, work: Coroutine[Any, Any, T], done: queue.SimpleQueue[asyncio.Task[T]]) -> None:
        self._loop.create_task(work).add_done_callback(done.put)
