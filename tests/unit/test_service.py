"""The service's stream without a network: what is written, and when it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

import coordinator.stream
from coordinator.events import Joined, PredictionArrived
from coordinator.run_folder import RunFolder
from coordinator.service import CoordinatorService
from coordinator.session import Session
from coordinator.stream import QUEUED
from entangled import PROTOCOL_VERSION
from entangled.alignment import batch_digest
from entangled.experiment import Experiment
from entangled.v1 import exchange_pb2 as pb
from tests.contract.raw import batch, join, predict
from tests.support import CLASSES, data, experiment, prediction


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


class Greedy(Context):
    """A peer that repeats its first prediction for ever, and reads nothing after its welcome."""

    def __init__(self, settings: Experiment) -> None:
        super().__init__()
        self.asked = 0
        self._prediction = predict(settings, "a", 0)

    async def read(self) -> pb.PeerMessage:
        self.asked += 1
        await asyncio.sleep(0)
        return join("a") if self.asked == 1 else self._prediction

    async def write(self, message: pb.CoordinatorMessage) -> None:
        self.seen.append(message.WhichOneof("kind"))
        await self.release.wait()


def test_guarantee_7_from_who_does_not_read_no_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(("a", "b"))
    answer = 4 * CLASSES * 4
    monkeypatch.setattr(coordinator.stream, "QUEUED_BYTES", 200 * answer)

    async def repeat() -> None:
        session = Session(settings, 0.0)
        service = CoordinatorService(session, "", RunFolder(tmp_path, ""), lambda _: None, lambda _: None)
        other, greedy = Context(), Greedy(settings)
        other.release.set()
        session.handle(Joined(99, "b", "b", "", PROTOCOL_VERSION, data()), 0.0)
        position, ids = batch(settings, 0)
        handling = asyncio.create_task(service.Exchange(None, greedy))
        while session.members["a"].connection is None:
            await asyncio.sleep(0)
        arrived = prediction("b", position, len(ids))
        session.handle(PredictionArrived(99, position, batch_digest(position, ids), arrived, 1, 0), 0.0)
        asked = -1
        while asked != greedy.asked:  # goes on for as long as more is read
            asked = greedy.asked
            for _ in range(20):
                await asyncio.sleep(0)
        ((connection, _),) = service._connections.values()
        assert QUEUED < len(connection.outgoing) < 250
        greedy.release.set()
        while greedy.asked < 2 * asked:  # who reads again is heard again
            await asyncio.sleep(0)
        handling.cancel()
        await asyncio.wait({handling})

    asyncio.run(asyncio.wait_for(repeat(), 30))
