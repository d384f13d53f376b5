"""A distance in the place of a network: a TCP proxy in a process of its own that passes everything on, later.

python -m benchmarks.delay unix:TARGET SECONDS      # prints its port; SECONDS are one way
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop


class Way(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other end, later.

    What is under way does not wait for what was sent before it: late, but not slow. A distance takes no processor time
    of those at its ends, so this one should take as little as can be.
    """

    other: Way
    sink: Any

    def __init__(self, seconds: float) -> None:
        self._later, self._seconds = asyncio.get_running_loop().call_later, seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.sink = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._later(self._seconds, self.other.sink.write, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._later(self._seconds, self.other.sink.close)


class Accepted(Way):
    """The end that a peer has connected to."""

    def __init__(self, target: str, seconds: float) -> None:
        super().__init__(seconds)
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`: nothing is read before the target is there."""
        super().connection_made(transport)
        self.sink.pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        _, self.other = await asyncio.get_running_loop().create_unix_connection(
            lambda: Way(self._seconds), self._target
        )
        self.other.other = self
        self.sink.resume_reading()


async def serve(target: str, seconds: float) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(lambda: Accepted(target, seconds), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1].removeprefix("unix:"), float(sys.argv[2])))
