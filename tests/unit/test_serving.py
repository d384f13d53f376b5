"""The server whose event loop waits for gRPC: what a caller gets, and what wakes the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator import serving
from coordinator.serving import AbortedError, Loop, Server

SECONDS = 30.0
Method = Callable[[Any, Any], Any]


def serve(tmp_path: Path, ask: Callable[[grpc.Channel], Any], **methods: Method) -> Any:
    """What `ask` gives, on a thread of its own, where a server has these methods, all of bytes."""
    handlers = {name: grpc.stream_stream_rpc_method_handler(method) for name, method in methods.items()}

    async def run() -> Any:
        server = Server([], lambda _, handler: handler)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])
        server.add_insecure_port(f"unix:{tmp_path}/s.sock")
        server.start()
        try:
            with grpc.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
                return await asyncio.wait_for(asyncio.to_thread(ask, channel), SECONDS)
        finally:
            await server.stop(0)

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(run())


def call(channel: grpc.Channel, method: str) -> Any:
    return channel.stream_stream(f"/test/{method}")(iter([b"said"]), timeout=SECONDS, wait_for_ready=True)


async def echo(requests: Any, _: Any) -> Any:
    async for request in requests:
        yield request


def test_messages_come_and_go(tmp_path: Path) -> None:
    assert serve(tmp_path, lambda channel: list(call(channel, "echo")), echo=echo) == [b"said"]


def test_a_method_that_nobody_has_is_unimplemented(tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        serve(tmp_path, lambda channel: list(call(channel, "other")), echo=echo)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (ValueError("no such thing"), grpc.StatusCode.UNKNOWN, "no such thing"),
        (AbortedError("enough"), grpc.StatusCode.ABORTED, "enough"),
    ],
    ids=["raises", "aborts"],
)
def test_a_method_that_fails_says_so(tmp_path: Path, error: Exception, code: grpc.StatusCode, details: str) -> None:
    async def fail(_: Any, context: Any) -> None:
        if isinstance(error, AbortedError):
            await context.abort(code, details)
        raise error

    with pytest.raises(grpc.RpcError) as raised:
        serve(tmp_path, lambda channel: list(call(channel, "fail")), fail=fail)
    assert raised.value.code() is code
    assert details in (raised.value.details() or "")


def test_a_caller_that_gives_up_ends_the_method(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def wait(_: Any, __: Any) -> None:
        begun.set()
        try:
            await asyncio.Future()
        finally:
            ended.set()

    def give_up(channel: grpc.Channel) -> bool:
        waiting = call(channel, "wait")
        assert begun.wait(SECONDS)
        waiting.cancel()
        return ended.wait(SECONDS)

    assert serve(tmp_path, give_up, wait=wait)


def test_another_thread_wakes_the_loop_while_a_call_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, it would be heard when gRPC has been waited for as long as that is done at most: too late here."""
    woken = threading.Event()

    async def wait(_: Any, __: Any) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        monkeypatch.setattr(serving, "MOST_SECONDS", 10 * SECONDS)
        loop.call_soon(threading.Thread(target=loop.call_soon_threadsafe, args=(done.set_result, None)).start)
        await done
        monkeypatch.undo()
        woken.set()

    def ask(channel: grpc.Channel) -> bool:
        return list(call(channel, "wait")) == [] and woken.is_set()

    assert serve(tmp_path, ask, wait=wait)


def test_a_server_needs_its_loop() -> None:
    async def begin() -> None:
        Server([], lambda _, handler: handler)

    with pytest.raises(TypeError, match=r"serving\.Loop"):
        asyncio.run(begin())
