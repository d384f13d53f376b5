"""The service's stream without a network: what is written, and when it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.run_folder import RunFolder
from coordinator.service import CoordinatorService
from coordinator.session import Session
from entangled.v1 import exchange_pb2 as pb
from tests.contract.raw import join
from tests.support import experiment


class AbortedError(Exception):
    """What gRPC raises in a handler that aborts."""


class Context:
    """A stream on which a process joins and, while the welcome is still being written, sends an empty message."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.release = asyncio.Event()
        self._writing = asyncio.Event()
        self._reads = 0

    async def read(self) -> pb.PeerMessage:
        self._reads += 1
        if self._reads == 1:
            return join("a")
        await self._writing.wait()
        return pb.PeerMessage()

    async def write(self, message: pb.CoordinatorMessage) -> None:
        self.seen.append(message.WhichOneof("kind"))
        self._writing.set()
        await self.release.wait()
        self.seen.append("written")

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.seen.append(details)
        raise AbortedError

    def peer(self) -> str:
        return "test"


def test_a_refusal_waits_for_the_write_that_is_under_way(tmp_path: Path) -> None:
    """gRPC cannot send a status after a write that was cancelled: the refused peer would never hear of it."""

    async def refuse() -> list[object]:
        session = Session(experiment(), 0.0)
        service = CoordinatorService(session, "", RunFolder(tmp_path, ""), lambda _: None, lambda _: None)
        context = Context()
        handling = asyncio.create_task(service.Exchange(None, context))
        while session.members["a"].connection is None:
            await asyncio.sleep(0)
        while session.members["a"].connection is not None:
            await asyncio.sleep(0)
        assert context.seen == ["welcome"]  # refused and disconnected, but not yet told
        context.release.set()
        with pytest.raises(AbortedError):
            await handling
        return context.seen

    seen = asyncio.run(asyncio.wait_for(refuse(), 30))
    assert seen[:2] == ["welcome", "written"]
    assert str(seen[2]).startswith("an empty message")
    assert len(seen) == 3


class Late(Context):
    """A stream on which nothing is said before `speak` is set, and then a join."""

    def __init__(self) -> None:
        super().__init__()
        self.release.set()
        self.speak = asyncio.Event()
        self.answered = asyncio.Event()

    async def read(self) -> Any:
        await self.speak.wait()
        return await super().read() if self._reads == 0 else await asyncio.Future()

    async def write(self, message: pb.CoordinatorMessage) -> None:
        await super().write(message)
        self.answered.set()


def test_nothing_is_said_to_a_connection_before_its_welcome(tmp_path: Path) -> None:
    """What reached the disk is told to every peer; to one that is just coming back, only after its welcome."""

    async def connect() -> list[object]:
        service = CoordinatorService(
            Session(experiment(), 0.0), "", RunFolder(tmp_path, ""), lambda _: None, lambda _: None
        )
        context = Late()
        handling = asyncio.create_task(service.Exchange(None, context))
        await asyncio.sleep(0)  # the stream is there, its join is not
        service.durable(0)
        context.speak.set()
        await context.answered.wait()
        handling.cancel()
        await asyncio.wait({handling})
        return context.seen

    assert asyncio.run(asyncio.wait_for(connect(), 30))[0] == "welcome"
