"""`entangled.join_async`: a peer of a run within somebody's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from entangled import credentials
from entangled.alignment import Position, SampleIds
from entangled.errors import ProtocolError
from entangled.participation.client import CoordinatorClient
from entangled.participation.course import Course, Hooks, Place
from entangled.participation.data import Data, choose, fingerprint_of
from entangled.participation.seam import SoftTarget
from entangled.participation.tree import Tree
from entangled.views import View

T = TypeVar("T")

WAITING = 8
"""Things that a peer may wait for at once; what is more waits for its turn."""


class _Way:
    """A client on threads: what waits does not keep the event loop from its work."""

    def __init__(self, client: CoordinatorClient, threads: ThreadPoolExecutor) -> None:
        self.client = client
        self._threads = threads
        self._asked: dict[Position, Future[SoftTarget]] = {}

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Have `work` done on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`; who is cancelled may ask again."""
        if position not in self._asked:
            self._asked[position] = self._threads.submit(self.client.result, position)
        try:
            target = await asyncio.shield(asyncio.wrap_future(self._asked[position]))
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._asked.pop(position, None)
            raise
        self._asked.pop(position, None)
        return target


class AsyncBatch(Place):
    """One batch of the run, as `entangled.Batch`, with `await`."""

    def __init__(
        self,
        way: _Way,
        course: Course,
        position: Position,
        ids: SampleIds,
        due: Callable[[Position], Awaitable[list[AsyncBatch]]],
    ) -> None:
        super().__init__(course, position, ids)
        self._way, self._due = way, due

    async def exchange(self, prediction: Any) -> SoftTarget:
        """See `entangled.Batch.exchange`."""
        await self.submit(prediction)
        return await self.result()

    async def submit(self, prediction: Any) -> None:
        """See `entangled.Batch.submit`."""
        if not self._course.published(self.position):
            shown = self._course.submitted(self.position, prediction)
            self._way.client.submit(self.position, self.ids, shown)

    async def due(self) -> list[AsyncBatch]:
        """See `entangled.Batch.due`."""
        return await self._due(self.position)

    async def result(self) -> SoftTarget:
        """See `entangled.Batch.result`."""
        target = await self._way.result(self.position)
        self._course.answered(self.position)
        return target

    async def report(self, **values: float) -> None:
        """See `entangled.Batch.report`."""
        numbers = {name: float(value) for name, value in values.items()}
        if self.report_due:
            self._way.client.report(self.position, numbers, epoch_end=self.last)
            self._course.note_report(numbers)


class AsyncPeer:
    """This task's part in a run, as `entangled.Peer`, with `await`; what `entangled.join_async` gives."""

    def __init__(self, way: _Way, course: Course, data: Data) -> None:
        self.name, self.experiment, self.data, self.classes = course.name, course.experiment, data, course.classes
        self.course = course
        self._way = way
        self._orders: dict[int, SampleIds] = {}
        self._asked = False
        self._finished = False

    async def keep(self, folder: str | Path, state: Callable[[], Tree], restore: Callable[[Tree], object]) -> bool:
        """See `entangled.Peer.keep`."""
        if not self.course.keep(Hooks(Path(folder), state, restore)):
            return False
        for index, prediction in self.course.in_flight.items():
            again = await self._batch(self.course.layout.position(index))
            self._way.client.submit(again.position, again.ids, prediction)
        return True

    async def look_ahead(self, step_seconds: Callable[[], float] = float) -> int:
        """See `entangled.Peer.look_ahead`."""
        if not self._asked:
            taken = step_seconds() if self._way.client.decided is None else 0.0  # here, where the loop's model is
            self.course.lookahead = await self._way.do(self._way.client.lookahead, lambda: taken)
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
            self._orders[position.epoch] = await self._way.do(self._way.client.order, position.epoch)
        ids = self.course.layout.batch(self._orders[position.epoch], position.step)
        return AsyncBatch(self._way, self.course, position, ids, self._due)

    async def _due(self, position: Position) -> list[AsyncBatch]:
        await self.look_ahead()
        return [await self._batch(self.course.layout.position(index)) for index in self.course.due(position)]

    async def finish(self, **values: float) -> None:
        """See `entangled.Peer.finish`."""
        if not self.course.over:
            raise ProtocolError(self.course.left_early())
        await self._save_if_due()
        await self._way.do(self._way.client.settle, self.course.done)
        values = self.course.final_values({k: float(v) for k, v in values.items()})
        await self._way.do(self._way.client.finish, values)
        self._finished = True

    async def fail(self, reason: str) -> None:
        """See `entangled.Peer.fail`."""
        self._finished = True
        await self._way.do(self._way.client.fail, reason)

    async def leave(self, error: BaseException | None) -> None:
        """Say goodbye, as leaving the `async with` block does."""
        if self._finished:
            return
        match self.course.parting(error):
            case "done":
                await self.finish()
            case "away":
                self._way.client.close()
            case failure:
                await self.fail(failure.reason)

    async def _save_if_due(self) -> None:
        if self.course.checkpoint_due():
            await self._way.do(self._way.client.settle, self.course.done)
            self._way.client.forget(self.course.save())


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
    with ThreadPoolExecutor(WAITING, f"peer {name}") as threads:
        loop = asyncio.get_running_loop()
        client = await loop.run_in_executor(threads, CoordinatorClient, address, name, connect_seconds, shown)
        way = _Way(client, threads)
        try:
            chosen = choose(client.experiment, name, data, classes)
            if isinstance(chosen, View):
                chosen = chosen.only(await way.do(client.agree, chosen.names))
            mine = fingerprint_of(chosen)
            complete = await way.do(client.join, mine)
            peer = AsyncPeer(way, Course(client.experiment, name, client.run_id, mine, complete), chosen)
            try:
                yield peer
            except BaseException as error:
                await peer.leave(error)
                raise
            await peer.leave(None)
        finally:
            client.close()
