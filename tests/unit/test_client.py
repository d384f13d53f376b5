"""The gRPC client where gRPC itself gets in the way: the status that counts is the coordinator's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from entangled import codec
from entangled.alignment import Position, batch_digest
from entangled.errors import RunFailedError
from entangled.participation import stream
from entangled.participation.client import CoordinatorClient
from entangled.participation.link import Link
from entangled.status import to_status
from entangled.v1 import exchange_pb2 as pb
from tests.support import data, experiment, prediction

Status = tuple[grpc.StatusCode, str, Any]
FAILED: Status = to_status(RunFailedError("peer b failed: no memory left"))
INTERNAL: Status = grpc.StatusCode.INTERNAL, "Internal error from Core", ()


class Call:
    """A stream that welcomes, and of which the second write meets the end; `statuses` are set one after the other."""

    def __init__(self, statuses: list[Status]) -> None:
        self._statuses = statuses
        self._status: Status | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._writes = self._reads = 0
        self._ended = asyncio.Event()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    async def write(self, message: pb.PeerMessage) -> None:
        self._writes += 1
        if self._writes > 1:
            self._set(self._statuses[0])
            asyncio.get_running_loop().call_soon(self._set, self._statuses[1])
            code, details, _ = self._statuses[0]
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    async def read(self) -> pb.CoordinatorMessage:
        self._reads += 1
        if self._reads > 1:
            await self._ended.wait()
            code, details, _ = self._now()
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
        return pb.CoordinatorMessage(welcome=pb.Welcome(run_id="run"))

    async def code(self) -> grpc.StatusCode:
        return self._now()[0]

    async def details(self) -> str:
        return self._now()[1]

    async def trailing_metadata(self) -> Any:
        return self._now()[2]

    def cancel(self) -> None:
        pass

    def done(self) -> bool:
        return self._status is not None

    def _now(self) -> Status:
        assert self._status is not None
        return self._status

    def _set(self, status: Status) -> None:
        self._status = status
        self._ended.set()
        for callback in self._callbacks:
            callback(self)


@pytest.mark.parametrize("statuses", [[FAILED, INTERNAL], [INTERNAL, FAILED]])
def test_a_write_that_meets_the_end_of_the_stream_does_not_hide_why_it_ended(
    monkeypatch: pytest.MonkeyPatch, statuses: list[Status]
) -> None:
    """grpc.aio puts its own INTERNAL in the place of the coordinator's status, before or after that has come."""

    async def connect(self: Any, seconds: float) -> None:
        self._channel = grpc.aio.insecure_channel("unix:nowhere")
        self.run_id, self.experiment = "run", experiment()
        self._stub = type("Stub", (), {"Exchange": lambda _, **__: Call(statuses)})()

    monkeypatch.setattr(Link, "open", connect)
    client = CoordinatorClient("unix:nowhere", "a")
    client.join(data())
    start = Position(0, 0)
    with pytest.raises(RunFailedError, match="peer b failed: no memory left"):
        client.exchange(start, np.arange(4), prediction("a", start, 4))
    client.close()


class BreakingCall:
    """A stream that welcomes and, once four predictions are written, gives `answers`; a `None` among them breaks it."""

    def __init__(self, written: list[tuple[int, int]], answers: Iterator[Position | None]) -> None:
        self._written, self._answers = written, answers
        self._welcome, self._predicted = asyncio.Event(), asyncio.Event()
        self._welcomed = False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        pass

    async def write(self, message: pb.PeerMessage) -> None:
        if message.WhichOneof("kind") == "join":
            self._welcome.set()
        else:
            self._written.append((message.prediction.epoch, message.prediction.step))
            if len(self._written) == 4:
                self._predicted.set()

    async def read(self) -> Any:
        if not self._welcomed:
            self._welcomed = await self._welcome.wait()
            return pb.CoordinatorMessage(welcome=pb.Welcome(run_id="run"))
        await self._predicted.wait()
        for position in self._answers:
            if position is None:
                return grpc.aio.EOF
            return self._answer(position)
        return await asyncio.Event().wait()  # nothing more comes

    def _answer(self, position: Position) -> pb.CoordinatorMessage:
        made = prediction("b", position, 4)
        digest = batch_digest(position, np.arange(4))
        return codec.encode_soft_target(codec.SoftTarget(position, digest, 0.5, made))

    def cancel(self) -> None:
        pass

    def done(self) -> bool:
        return False


def test_guarantee_6_everything_in_flight_is_sent_again_in_order_after_a_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was answered and may be lost comes first, then what is in flight. Results come in any order."""
    positions = [experiment().layout(10).position(index) for index in range(4)]
    streams: list[list[tuple[int, int]]] = []
    answers = iter([positions[0], None, *positions])

    def exchange(_: Any, **__: Any) -> BreakingCall:
        streams.append([])
        return BreakingCall(streams[-1], answers)

    async def connect(self: Any, seconds: float) -> None:
        self._channel = grpc.aio.insecure_channel("unix:nowhere")
        self.run_id, self.experiment = "run", experiment()
        self._stub = type("Stub", (), {"Exchange": exchange})()

    monkeypatch.setattr(Link, "open", connect)
    monkeypatch.setattr(stream, "WHY_SECONDS", 0.0)
    client = CoordinatorClient("unix:nowhere", "a")
    client.join(data())
    for position in positions:
        client.submit(position, np.arange(4), prediction("a", position, 4))
    results = [client.result(position) for position in (positions[0], *reversed(positions[1:]))]
    client.close()
    assert streams == [[tuple(p) for p in positions]] * 2
    for position, result in zip((positions[0], *reversed(positions[1:])), results, strict=True):
        assert result.probabilities.tobytes() == prediction("b", position, 4).tobytes()
