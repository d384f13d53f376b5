"""A distance in the place of a network: a TCP proxy in a process of its own that passes everything on, later.

python -m benchmarks.delay unix:TARGET SECONDS      # prints its port; SECONDS are one way
"""

from __future__ import annotations

import asyncio
import sys


async def serve(target: str, seconds: float) -> None:
    """Serve for ever. What is under way does not wait for what was sent before it: late, but not slow."""
    loop = asyncio.get_running_loop()

    async def later(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            loop.call_later(seconds, sink.write, data)
        loop.call_later(seconds, sink.close)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(target)
        await asyncio.gather(later(reader, ours), later(theirs, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1].removeprefix("unix:"), float(sys.argv[2])))
