"""What strangers can hold of a coordinator has a bound."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.lobby import Room, limits, message_bytes
from entangled import codec
from entangled.errors import UnreachableError
from tests.support import data, experiment


def test_a_room_gives_what_the_work_gives_and_raises_what_it_raises() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 3

    async def failing() -> int:
        raise LookupError("no")

    async def go() -> None:
        room = Room(2, 30.0, "work")
        assert await room.hold(work(), "") == 3
        with pytest.raises(LookupError):
            await room.hold(failing(), "")
        assert len(room) == 0

    asyncio.run(go())


def test_who_has_been_there_longest_makes_place_and_may_try_again() -> None:
    async def go() -> list[object]:
        room, wait = Room(2, 30.0, "do that"), asyncio.Event()
        tasks = [asyncio.create_task(room.hold(_until(wait), "")) for _ in range(5)]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0)
        assert len(room) == 2
        wait.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, second, third, *rest = asyncio.run(go())
    assert rest == ["done", "done"]
    for error in (first, second, third):
        assert isinstance(error, UnreachableError)  # which peers answer by trying again
        assert str(error) == "the coordinator is busy: too many callers do that"


def test_a_host_with_many_callers_makes_place_and_not_the_others() -> None:
    async def go() -> list[object]:
        room, wait = Room(3, 30.0, "do that"), asyncio.Event()
        tasks = [asyncio.create_task(room.hold(_until(wait), host)) for host in ("honest", *["stranger"] * 6, "other")]
        while sum(task.done() for task in tasks) < 5:
            await asyncio.sleep(0)
        wait.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, *strangers, last = asyncio.run(go())
    assert (first, last) == ("done", "done")
    assert sum(isinstance(error, UnreachableError) for error in strangers) == 5


async def _until(event: asyncio.Event) -> str:
    await event.wait()
    return "done"


def test_nobody_waits_for_ever() -> None:
    async def go() -> None:
        room = Room(2, 0.01, "hear the first message")
        with pytest.raises(UnreachableError, match=r"has waited 0\.01 s to hear the first message"):
            await room.hold(_until(asyncio.Event()), "")
        assert len(room) == 0

    asyncio.run(go())


def test_who_hangs_up_leaves_the_room() -> None:
    async def go() -> None:
        room = Room(2, 30.0, "work")
        task = asyncio.create_task(room.hold(_until(asyncio.Event()), ""))
        while len(room) == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(room) == 0

    asyncio.run(go())


def test_a_message_has_room_for_a_prediction_and_little_more() -> None:
    settings = experiment()  # batches of 4
    known = message_bytes(settings, data())  # three classes
    assert known == 4 * 3 * 4 + 64 * 1024
    assert message_bytes(experiment(classes=1000), None) == 4 * 1000 * 4 + 64 * 1024
    assert known < message_bytes(settings, None) <= 4 * 65_536 * 4 + 64 * 1024
    assert message_bytes(settings.model_copy(update={"batch_size": 2**30}), None) == codec.MAX_MESSAGE_BYTES
    assert dict(limits(settings, data()))["grpc.max_receive_message_length"] == known


def test_an_experiment_of_many_peers_has_connections_for_all() -> None:
    many = experiment(tuple(f"p{i}" for i in range(500)))
    assert dict(limits(many, None))["grpc.max_allowed_incoming_connections"] == 2000
