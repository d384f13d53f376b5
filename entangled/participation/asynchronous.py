"""`entangled.join_async`: a peer of a run within somebody's own event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from entangled import credentials
from entangled.alignment import Position, SampleIds
from entangled.errors import ProtocolError
from entangled.participation.connection import Connection
from entangled.participation.course import Course, Hooks, Place
from entangled.participation.data import Data, choose, fingerprint_of
from entangled.participation.link import Link
from entangled.participation.seam import SoftTarget
from entangled.participation.tree import Tree
from entangled.views import View


class AsyncBatch(Place):
    """One batch of the run, as `entangled.Batch`, with `await`."""

    def __init__(
        self,
        connection: Connection,
        course: Course,
        position: Position,
        ids: SampleIds,
        due: Callable[[Position], Awaitable[list[AsyncBatch]]],
    ) -> None:
        super().__init__(course, position, ids)
        self._connection, self._due = connection, due

    async def exchange(self, prediction: Any) -> SoftTarget:
        """See `entangled.Batch.exchange`."""
        await self.submit(prediction)
        return await self.result()

    async def submit(self, prediction: Any) -> None:
        """See `entangled.Batch.submit`."""
        if not self._course.published(self.position):
            shown = self._course.submitted(self.position, prediction)
            await self._connection.submit(self.position, self.ids, shown)

    async def due(self) -> list[AsyncBatch]:
        """See `entangled.Batch.due`."""
        return await self._due(self.position)

    async def result(self) -> SoftTarget:
        """See `entangled.Batch.result`."""
        target = await self._connection.result(self.position)
        self._course.answered(self.position)
        return target

    async def report(self, **values: float) -> None:
        """See `entangled.Batch.report`."""
        numbers = {name: float(value) for name, value in values.items()}
        if self.report_due:
            await self._connection.report(self.position, numbers, epoch_end=self.last)
            self._course.note_report(numbers)


class AsyncPeer:
    """This task's part in a run, as `entangled.Peer`, with `await`; what `entangled.join_async` gives."""

    def __init__(self, connection: Connection, course: Course, data: Data) -> None:
        self.name, self.experiment, self.data, self.classes = course.name, course.experiment, data, course.classes
        self.course = course
        self._connection = connection
        self._orders: dict[int, SampleIds] = {}
        self._asked = False
        self._finished = False

    async def keep(self, folder: str | Path, state: Callable[[], Tree], restore: Callable[[Tree], object]) -> bool:
        """See `entangled.Peer.keep`."""
        if not self.course.keep(Hooks(Path(folder), state, restore)):
            return False
        for index, prediction in self.course.in_flight.items():
            again = await self._batch(self.course.layout.position(index))
            await self._connection.submit(again.position, again.ids, prediction)
        return True

    async def look_ahead(self, step_seconds: Callable[[], float] = float) -> int:
        """See `entangled.Peer.look_ahead`."""
        if not self._asked:
            decided = self._connection.decided
            self.course.lookahead = await self._connection.decide(step_seconds()) if decided is None else decided
            self._asked = True
        return self.course.lookahead

    def __aiter__(self) -> AsyncPeer:
        return self

    async def __anext__(self) -> AsyncBatch:
        await self._save_if_due()
        position = self.course.next_batch()
        if position is None:
            raise StopAsyncIteration
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= position.epoch}
        return await self._batch(position)

    async def _batch(self, position: Position) -> AsyncBatch:
        if position.epoch not in self._orders:
            self._orders[position.epoch] = await self._connection.order(position.epoch)
        ids = self.course.layout.batch(self._orders[position.epoch], position.step)
        return AsyncBatch(self._connection, self.course, position, ids, self._due)

    async def _due(self, position: Position) -> list[AsyncBatch]:
        await self.look_ahead()
        return [await self._batch(self.course.layout.position(index)) for index in self.course.due(position)]

    async def finish(self, **values: float) -> None:
        """See `entangled.Peer.finish`."""
        if not self.course.over:
            raise ProtocolError(self.course.left_early())
        await self._save_if_due()
        await self._connection.settle(self.course.done)
        await self._connection.finish(self.course.final_values({k: float(v) for k, v in values.items()}))
        self._finished = True

    async def fail(self, reason: str) -> None:
        """See `entangled.Peer.fail`."""
        self._finished = True
        await self._connection.fail(reason)

    async def leave(self, error: BaseException | None) -> None:
        """Say goodbye, as leaving the `async with` block does."""
        if self._finished:
            return
        match self.course.parting(error):
            case "done":
                await self.finish()
            case "away":
                await self._connection.close()
            case failure:
                await self.fail(failure.reason)

    async def _save_if_due(self) -> None:
        if self.course.checkpoint_due():
            await self._connection.settle(self.course.done)
            await self._connection.forget(self.course.save())


@asynccontextmanager
async def join_async(
    address: str,
    name: str,
    data: Any = None,
    *,
    classes: int | None = None,
    connect_seconds: float = 60.0,
    certs: Path | str | None = None,
    token_file: Path | str | None = None,
) -> AsyncGenerator[AsyncPeer]:
    """Become a peer of a run within an event loop that has other things to do. See `entangled.join`.

        async with entangled.join_async("coordinator:50051", name="vit") as peer:
            async for batch in peer:
                target = await batch.exchange(model(x[batch.ids]))

    Checkpoints are written on the loop's own thread, and so is the model's work, unless the loop hands it to another.
    """
    shown = credentials.load(Path(certs) if certs else None, Path(token_file) if token_file else None)
    link = Link(address, shown)
    connection = Connection(link, name)
    try:
        await link.open(connect_seconds)
        chosen = choose(link.experiment, name, data, classes)
        if isinstance(chosen, View):
            chosen = chosen.only(await connection.agree(chosen.names))
        mine = fingerprint_of(chosen)
        complete = await connection.join(mine)
        peer = AsyncPeer(connection, Course(link.experiment, name, link.run_id, mine, complete), chosen)
        try:
            yield peer
        except BaseException as error:
            await peer.leave(error)
            raise
        await peer.leave(None)
    finally:
        await connection.close()
        await link.close()
