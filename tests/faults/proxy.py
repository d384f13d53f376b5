"""A network that misbehaves on schedule: a TCP proxy in front of a coordinator's unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self


class Proxy:
    """Passes bytes on, late if so wished, until it is told to cut or to freeze. A context manager.

    Args:
        target: path of the coordinator's unix socket.
        delay: seconds by which every piece of data is late, each way.
    """

    def __init__(self, target: str, delay: float = 0.0) -> None:
        self.port = 0
        self.accepted = 0
        """Connections that were passed on."""
        self.refused = 0
        """Connections that were cut at once."""
        self.up = self.down = 0
        """Pieces of data that were passed on, to the coordinator and from it."""
        self.sent = bytearray()
        """All that was said to the coordinator."""
        self._target, self._delay = target, delay
        self._refuse = 0
        self._open: set[asyncio.StreamWriter] = set()
        """This side's ends, and the coordinator's."""
        self._theirs: set[asyncio.StreamWriter] = set()
        self._frozen = 0
        """So many first connections pass nothing on any more, though they stay open."""
        self._unnoticed = 0
        """So many first connections the coordinator still holds for open."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self, refuse: int = 0, *, unnoticed: bool = False) -> None:
        """Break every connection, and the next `refuse` attempts at a new one, too.

        The coordinator does not notice if it is `unnoticed`: to it, the connection is still there.
        """

        def now() -> None:
            self._refuse = refuse
            if unnoticed:
                self._unnoticed = self.accepted
            for writer in self._open if unnoticed else self._open | self._theirs:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(now)

    def freeze(self) -> None:
        """Let nothing pass on the connections that there are, which neither side notices."""

        def now() -> None:
            self._frozen = self.accepted

        self._loop.call_soon_threadsafe(now)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for writer in self._open | self._theirs:
            writer.transport.abort()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            self._refuse -= 1
            self.refused += 1
            writer.transport.abort()
            return
        try:
            their_reader, their_writer = await asyncio.open_unix_connection(self._target)
        except OSError:  # nobody listens there yet
            writer.transport.abort()
            return
        self.accepted += 1
        number = self.accepted
        self._open.add(writer)
        self._theirs.add(their_writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._pass_on(number, reader, their_writer, up=True),
                self._pass_on(number, their_reader, writer, up=False),
            )
        self._open.discard(writer)
        self._theirs.discard(their_writer)
        for end in (writer, their_writer):
            end.transport.abort()

    async def _pass_on(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if number <= max(self._frozen, self._unnoticed):
                    continue
                if up:
                    self.up += 1
                    self.sent += data
                else:
                    self.down += 1
                writer.write(data)
                await writer.drain()
            raise ConnectionResetError
        except OSError:
            if not (up and number <= self._unnoticed):
                raise
