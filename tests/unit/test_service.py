"""The service's stream without a network: what is written, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

import coordinator.stream
from coordinator.events import Joined, PredictionArrived
from coordinator.run_folder import RunFolder
from coordinator.service import CoordinatorService
from coordinator.serving import AbortedError, Then
from coordinator.session import Session
from coordinator.stream import QUEUED
from entangled import PROTOCOL_VERSION, sending
from entangled.alignment import batch_digest
from entangled.experiment import Experiment
from entangled.v1 import exchange_pb2 as pb
from tests.contract.raw import batch, join, predict
from tests.support import CLASSES, data, experiment, prediction


class Context:
    """A stream on which a process joins and, while the welcome is still being written, sends an empty message."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.written: Callable[[], None] | None = None
        """Says that what was sent is written."""
        self._then: Then | None = None

    def receive(self, then: Then) -> None:
        """What comes, comes later."""
        self._then = then
        asyncio.get_running_loop().call_soon(self.speak)

    def send(self, message: sending.ToPeer, then: Callable[[], None]) -> None:
        self.seen.append(pb.CoordinatorMessage.FromString(message.SerializeToString()).WhichOneof("kind"))
        self.written = then

    def speak(self) -> None:
        said = join("a") if not self.seen else pb.PeerMessage()
        then, self._then = self._then, None
        assert then is not None
        then(said)

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
        assert context.written is not None
        context.seen.append("written")
        context.written()
        with pytest.raises(AbortedError):
            await handling
        return context.seen

    seen = asyncio.run(asyncio.wait_for(refuse(), 30))
    assert seen[:2] == ["welcome", "written"]
    assert str(seen[2]).startswith("an empty message")
    assert len(seen) == 3


class Late(Context):
    """A stream on which nothing is said by itself."""

    def receive(self, then: Then) -> None:
        self._then = then


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
        context.speak()
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

    def receive(self, then: Then) -> None:
        self.asked += 1
        asyncio.get_running_loop().call_soon(then, join("a") if self.asked == 1 else self._prediction)


def test_guarantee_7_from_who_does_not_read_no_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(("a", "b"))
    answer = 4 * CLASSES * 4
    monkeypatch.setattr(coordinator.stream, "QUEUED_BYTES", 200 * answer)

    async def repeat() -> None:
        session = Session(settings, 0.0)
        service = CoordinatorService(session, "", RunFolder(tmp_path, ""), lambda _: None, lambda _: None)
        greedy = Greedy(settings)
        session.handle(Joined(99, "b", "b", "", PROTOCOL_VERSION, data()), 0.0)
        position, ids = batch(settings, 0)
        handling = asyncio.create_task(service.Exchange(None, greedy))
        while session.members["a"].connection is None:
            await asyncio.sleep(0)
        arrived = prediction("b", position, len(ids))
        session.handle(PredictionArrived([99], position, batch_digest(position, ids), [arrived], [1], 0), 0.0)
        asked = -1
        while asked != greedy.asked:  # goes on for as long as more is read
            asked = greedy.asked
            for _ in range(20):
                await asyncio.sleep(0)
        ((connection, _),) = service._connections.values()
        assert QUEUED < len(connection.outgoing) < 250
        while greedy.asked < 2 * asked:  # who reads again is heard again
            assert greedy.written is not None
            greedy.written()
            await asyncio.sleep(0)
        handling.cancel()
        await asyncio.wait({handling})

    asyncio.run(asyncio.wait_for(repeat(), 30))
