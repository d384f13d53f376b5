"""The seam without a network: `seam.Exchange` over the coordinator's session itself."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable

from coordinator.gathering import Gathering
from coordinator.session import (
    Answer,
    Disconnected,
    Effect,
    Event,
    Failed,
    Finished,
    Joined,
    Left,
    MetricsArrived,
    Paced,
    PredictionArrived,
    Record,
    Replaced,
    Session,
    Settled,
    Synced,
    Ticked,
    Warn,
)
from entangled import PROTOCOL_VERSION
from entangled.alignment import Fingerprint, Position, SampleIds, batch_digest
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, ProtocolError, RefusedError
from entangled.experiment import Experiment
from entangled.participation.seam import Exchange, SoftTarget

TICK_SECONDS = 0.02


class InMemoryCoordinator:
    """What the coordinator's service does, with a lock in the place of its event loop."""

    def __init__(self, experiment: Experiment) -> None:
        self.session = Session(experiment, time.monotonic())
        self.gathering = Gathering(experiment.peer_names)
        self.changed = threading.Condition()
        self.warnings: list[str] = []
        self._numbers = itertools.count(1)
        self._answers: dict[tuple[int, Position], SoftTarget] = {}
        self._ended: dict[int, EntangledError | None] = {}
        self._end: EntangledError | None = None

    def peer(self, name: str) -> InMemoryExchange:
        """A way to the others for a new process of that name."""
        return InMemoryExchange(self, name)

    def cut(self, name: str) -> None:
        """Let a peer's connection end without goodbye."""
        with self.changed:
            connection = self.session.members[name].connection
            if connection is not None:
                self.session.handle(Disconnected(connection), time.monotonic())

    def connect(self) -> int:
        """A new connection's number."""
        with self.changed:
            number = next(self._numbers)
            if self.session.over:
                self._ended[number] = self._end
            return number

    def handle(self, connection: int, event: Event) -> None:
        """Take in an event; an error ends the connection it came on, as in the service."""
        with self.changed:
            if connection in self._ended:
                raise self._ended[connection] or ProtocolError("this connection has ended")
            try:
                effects = self.session.handle(event, time.monotonic())
            except RefusedError as error:
                self._ended[connection] = error
                self.session.handle(Disconnected(connection), time.monotonic())
                raise
            self._perform(effects)
            self.changed.notify_all()

    def answer(self, connection: int, position: Position) -> SoftTarget:
        """Wait for the answer about a batch on a connection. Whoever waits lets time pass."""
        with self.changed:
            while (connection, position) not in self._answers:
                if connection in self._ended:
                    raise self._ended[connection] or ProtocolError("the run is over")
                if not self.changed.wait(TICK_SECONDS):
                    self.handle(connection, Ticked())
            return self._answers.pop((connection, position))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Answer():
                    for connection, target in zip(effect.connections, effect.probabilities, strict=True):
                        self._answers[connection, effect.position] = SoftTarget(target, effect.weight)
                case Record():  # memory is as durable as anything here
                    self._perform(self.session.handle(Synced(effect.exchange.index + 1), time.monotonic()))
                case Warn():
                    self.warnings.append(effect.message)
                case Replaced():
                    self._ended[effect.connection] = ProtocolError("the same process has joined again elsewhere")
                case Failed():
                    self._end_all(effect.error)
                case Finished():
                    self._end_all(None)
                case _:
                    pass

    def _end_all(self, error: EntangledError | None) -> None:
        self._end = error
        for connection in range(next(self._numbers)):
            self._ended.setdefault(connection, error)


class InMemoryExchange(Exchange):
    """`seam.Exchange` of one process."""

    def __init__(self, coordinator: InMemoryCoordinator, name: str) -> None:
        self._coordinator = coordinator
        self._name = name
        self._instance = uuid.uuid4().hex
        self._connection = 0
        self._in_flight: set[Position] = set()

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        number = self._coordinator.connect()
        origin = f"thread {threading.get_ident()}"
        joined = Joined(number, self._name, self._instance, origin, PROTOCOL_VERSION, fingerprint)
        self._coordinator.handle(number, joined)
        self._connection = number
        return self._coordinator.session.complete

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        with self._coordinator.changed:
            self._coordinator.gathering.hold(self._name, sample_ids)
            self._coordinator.changed.notify_all()
            self._coordinator.changed.wait_for(lambda: self._coordinator.gathering.common is not None)
            return self._coordinator.gathering.common

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        with self._coordinator.changed:
            return self._coordinator.session.order(epoch)

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """See `seam.Exchange.lookahead`."""
        connection, session = self._joined(), self._coordinator.session
        if session.lookahead is None:
            self._coordinator.handle(connection, Paced(connection, round(step_seconds() * 1e6), 1_000))
        with self._coordinator.changed:
            assert self._coordinator.changed.wait_for(lambda: session.lookahead is not None, 60)
        return session.lookahead or 0

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        connection, digest = self._joined(), batch_digest(position, sample_ids)
        arrived = PredictionArrived([connection], position, digest, [prediction], [prediction.nbytes], 0)
        self._coordinator.handle(connection, arrived)
        self._in_flight.add(position)

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        if position not in self._in_flight:
            raise ProtocolError(f"no prediction was submitted for {position}, or its result has been given already")
        answer = self._coordinator.answer(self._connection, position)
        self._in_flight.remove(position)
        return answer

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`: what is answered is settled."""

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        connection = self._joined()
        self._coordinator.handle(connection, Settled(connection, complete))

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        connection = self._joined()
        self._coordinator.handle(connection, MetricsArrived(connection, position, values, epoch_end, False))

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        connection, layout = self._joined(), self._coordinator.session.layout
        assert layout is not None
        end = layout.position(layout.positions - 1)
        self._coordinator.handle(connection, MetricsArrived(connection, end, values, False, True))
        self._coordinator.handle(connection, Left(connection, ""))

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        with contextlib.suppress(EntangledError):
            self._coordinator.handle(self._connection, Left(self._connection, reason))

    def close(self) -> None:
        """See `seam.Exchange.close`."""
        self._coordinator.handle(self._connection, Disconnected(self._connection))

    def _joined(self) -> int:
        if not self._connection:
            raise ProtocolError("join before anything else")
        return self._connection
