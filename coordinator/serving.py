"""A gRPC server whose only thread is the event loop's: the loop waits for gRPC, and for everything else by the way.

`grpc.aio` has a second thread, which waits for gRPC and wakes the loop for everything that comes and is sent; it is as
dear as all that the coordinator does with it. So this is made of what `grpc.aio` and `grpc` are made of,
`grpc._cython.cygrpc` (ADR 1). Methods are those that `grpc.aio` would serve: coroutines and asynchronous generators.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc

from entangled import unix_sockets
from entangled.sending import Written

log = logging.getLogger(__name__)

_raw: Any = cygrpc
_NO_FLAGS = 0
_TIMEOUT = _raw.CompletionType.queue_timeout

MOST_SECONDS = 0.05
"""How long gRPC alone is waited for: what else there is, a signal say, may come as late as this."""

CLOSING_SECONDS = 5.0
"""How long gRPC may take to let go of everything."""

WAITING_CALLS = 16
"""New calls that gRPC may hand over without being asked again."""

Then = Callable[[Any], None]
"""Is told what has come: a message, None at the end of the stream, or an exception for what is no message."""


class AbortedError(Exception):
    """Raised in a method that has ended its call with a status."""


class Loop(asyncio.SelectorEventLoop):
    """An event loop on which a `Server` can run."""

    def __init__(self) -> None:
        self.grpc = _raw.CompletionQueue()
        self._waking: Any = None
        self._waiting = _Selector(self.grpc)
        super().__init__(self._waiting)

    def wake_by(self, call: Any) -> None:
        """Let other threads wake this loop by a call that is open; None if there is none."""
        self._waking = call

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`."""
        self._waiting.enough = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        self._waiting.enough = True
        return super().call_at(when, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon_threadsafe`; without an open call, the loop sees to it within `MOST_SECONDS`."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        call = self._waking
        if call is not None:
            call.start_server_batch((), self._woken)  # nothing, which is done at once
        return handle

    def close(self) -> None:
        """See `asyncio.loop.close`."""
        if not self.is_closed():
            self.grpc.shutdown()
            give_up = time.time() + CLOSING_SECONDS
            while self.grpc.poll(give_up).completion_type not in (_raw.CompletionType.queue_shutdown, _TIMEOUT):
                pass
        super().close()

    def _woken(self, _: Any) -> None:
        self._waiting.enough = True


class _Selector(selectors.DefaultSelector):
    """Waits for gRPC and takes in what comes, until there is other work for the loop; then looks at the files."""

    def __init__(self, queue: Any) -> None:
        super().__init__()
        self._queue = queue
        self.enough = False
        """Whether what was taken in gave the loop work."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        seconds = MOST_SECONDS if timeout is None else min(MOST_SECONDS, timeout)
        until = time.time() + seconds if seconds > 0 else 0
        self.enough = False
        event = self._queue.poll(until)
        while event.completion_type != _TIMEOUT:
            try:
                event.tag(event)
            except Exception:
                log.exception("an event of gRPC")
            event = None  # or gRPC keeps the call that it belongs to
            if self.enough:
                break
            event = self._queue.poll(until)
        return super().select(0)


class Call:
    """One call of a method: what `grpc.aio` gives its methods as their context, and `receive` and `send` without tasks.

    Args:
        event: of gRPC, that there is a call.
        handler: of the method.
    """

    def __init__(self, event: Any, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._call = event.call
        self._metadata = tuple((key, value) for key, value in event.invocation_metadata or ())
        self._parse: Any = handler.request_deserializer or bytes
        self._serialise: Any = handler.response_serializer or bytes
        self._greeted = self._ended = self._wide = False
        self._then: Then = _ignore
        self._sent: Callable[[], None] = _nothing

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        """What the caller has sent with the call."""
        return self._metadata

    def auth_context(self) -> Mapping[str, Any]:
        """Who the caller has proven to be, in gRPC's words."""
        return {key.decode(): value for key, value in (_raw.auth_context(self._call) or {}).items()}

    def peer(self) -> str:
        """The caller's address."""
        return self._call.peer().decode(errors="replace")

    def receive(self, then: Then) -> None:
        """Have `then` told the next message; one at a time."""
        self._then = then
        self._call.start_server_batch((_raw.ReceiveMessageOperation(_NO_FLAGS),), self._came)

    def _came(self, event: Any) -> None:
        data, found = event.batch_operations[0].message(), None
        if data is not None:
            try:
                found = self._parse(data)
            except DecodeError as error:
                found = error
        self._then(found)

    def send(self, message: Any, then: Callable[[], None]) -> None:
        """Send a message, and call `then` when it is on its way, or never will be; one at a time."""
        self._sent = then
        if isinstance(message, Written) and not self._wide:
            self._wide = True
            unix_sockets.widen(self.peer())
        data = message.SerializeToString() if isinstance(message, Written) else self._serialise(message)
        self._start((_raw.SendMessageOperation(data, _NO_FLAGS),), self._gone)

    def _gone(self, _: Any) -> None:
        self._sent()

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` after the last."""
        came: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.receive(lambda found: None if came.done() else came.set_result(found))
        found = await came
        if isinstance(found, DecodeError):
            raise found
        return grpc.aio.EOF if found is None else found

    async def write(self, message: Any) -> None:
        """Send a message, and wait until it is on its way."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.send(message, lambda: None if sent.done() else sent.set_result(None))
        await sent

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status; raises AbortedError."""
        self.end(code, details, trailing_metadata)
        raise AbortedError(details)

    def end(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status, unless it has ended."""
        if not self._ended:
            self._ended = True
            status = _raw.SendStatusFromServerOperation(trailing_metadata, code.value[0], details.encode(), _NO_FLAGS)
            self._start((status,), _ignore)

    def begin(self, cancelled: Callable[[], None]) -> None:
        """Have `cancelled` called if the caller gives up, or is gone, before the call has ended."""

        def closed(event: Any) -> None:
            if event.batch_operations[0].cancelled():
                cancelled()

        self._call.start_server_batch((_raw.ReceiveCloseOnServerOperation(_NO_FLAGS),), closed)

    def _start(self, operations: tuple[Any, ...], then: Callable[[Any], None]) -> None:
        if not self._greeted:
            self._greeted = True
            operations = (_raw.SendInitialMetadataOperation((), _NO_FLAGS), *operations)
        self._call.start_server_batch(operations, then)


class Server:
    """Serves methods on the event loop that runs, which is a `Loop`; a `grpc.aio.Server` as far as ours goes.

    Args:
        options: gRPC's.
        guard: puts a method's handler, which is found by the method's name, behind a door.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, Any]],
        guard: Callable[[str, grpc.RpcMethodHandler[Any, Any]], grpc.RpcMethodHandler[Any, Any]],
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, Loop):
            raise TypeError(f"a server runs on a serving.Loop, and not on {loop}")
        self._loop = loop
        self._guard = guard
        self._generic: list[Any] = []
        self._tasks: dict[asyncio.Task[None], Any] = {}
        """Of every call that has not ended, with gRPC's name for it."""
        self._stopping = False
        self._server = _raw.Server(list(options), False)
        self._server.register_completion_queue(loop.grpc)

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """See `grpc.aio.Server`."""
        self._generic += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """See `grpc.aio.Server`; they are among the generic ones, too."""

    def add_insecure_port(self, address: str) -> int:
        """See `grpc.aio.Server`."""
        return _bound(address, self._server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, credentials: Any) -> int:
        """See `grpc.aio.Server`."""
        return _bound(address, self._server.add_http2_port(address.encode(), credentials._credentials))

    def start(self) -> None:
        """Take calls."""
        self._server.start()
        for _ in range(WAITING_CALLS):
            self._await_call()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those that are not over after so many seconds."""
        self._stopping = True
        stopped: asyncio.Future[None] = self._loop.create_future()
        self._server.shutdown(self._loop.grpc, lambda _: stopped.set_result(None))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        self._server.cancel_all_calls()
        await asyncio.wait({stopped}, timeout=CLOSING_SECONDS)
        self._server.destroy()

    def _await_call(self) -> None:
        self._server.request_call(self._loop.grpc, self._loop.grpc, self._called)

    def _called(self, event: Any) -> None:
        if self._stopping or not event.success:
            return
        self._await_call()
        details = _Details(event)
        handler = next(filter(None, (generic.service(details) for generic in self._generic)), None)
        if handler is None:
            call = Call(event, _NOTHING)
            call.begin(lambda: None)
            call.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        handler = self._guard(details.method, handler)
        call = Call(event, handler)
        task = self._loop.create_task(_run(handler, call))
        self._tasks[task] = event.call
        self._loop.wake_by(event.call)
        task.add_done_callback(self._over)
        call.begin(task.cancel)  # pyright: ignore[reportArgumentType] # what it returns is nobody's concern

    def _over(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._loop.wake_by(next(iter(self._tasks.values()), None))


class _Details(grpc.HandlerCallDetails):
    def __init__(self, event: Any) -> None:
        self.method = event.call_details.method.decode(errors="replace")
        self.invocation_metadata = event.invocation_metadata


_NOTHING = grpc.unary_unary_rpc_method_handler(lambda *_: None)


async def _run(handler: Any, call: Call) -> None:
    """A method, from its first message to its status."""
    try:
        await _method(handler, call)
        call.end(grpc.StatusCode.OK)
    except AbortedError:
        pass
    except asyncio.CancelledError:
        call.end(grpc.StatusCode.CANCELLED)
    except Exception as error:
        log.exception("a call of %s", call.peer())
        call.end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")


async def _method(handler: Any, call: Call) -> None:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if handler.request_streaming:
        said: Any = _messages(call)
    elif (said := await call.read()) is grpc.aio.EOF:
        await call.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call without a request")
    if inspect.isasyncgenfunction(behaviour):
        async for reply in behaviour(said, call):
            await call.write(reply)
        return
    reply: Any = behaviour(said, call)
    if isinstance(reply, Awaitable):
        reply = await reply
    if reply is not None:
        await call.write(reply)


async def _messages(call: Call) -> Any:
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


def _bound(address: str, port: int) -> int:
    if port == 0:
        raise RuntimeError(f"cannot listen on {address}")
    return port


def _ignore(_: Any) -> None:
    pass


def _nothing() -> None:
    pass
