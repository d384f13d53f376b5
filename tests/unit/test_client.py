"""The gRPC client where gRPC itself gets in the way: the status that counts is the coordinator's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from entangled.alignment import Position
from entangled.errors import RunFailedError
from entangled.status import to_status
from entangled.v1 import exchange_pb2 as pb
from peer.client import CoordinatorClient
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

    async def connect(self: Any, seconds: float) -> Any:
        self._channel = grpc.aio.insecure_channel("unix:nowhere")
        self.run_id = "run"
        self._stub = type("Stub", (), {"Exchange": lambda _, **__: Call(statuses)})()
        return experiment()

    monkeypatch.setattr(CoordinatorClient, "_connect", connect)
    client = CoordinatorClient("unix:nowhere", "a")
    client.join(data())
    start = Position(0, 0)
    with pytest.raises(RunFailedError, match="peer b failed: no memory left"):
        client.exchange(start, np.arange(4), prediction("a", start, 4))
    client.close()
