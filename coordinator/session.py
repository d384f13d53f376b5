"""The session: the state machine behind the coordinator. Pure: events and the time go in, effects come out.

`Session.handle(event, now)` returns what is to be done and raises a RefusedError, changing nothing, when the event's
sender did something wrong. It never reads a clock, never blocks and never touches a socket or file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.batches import Batches
from coordinator.checks import check_metrics, check_predictions, check_version
from coordinator.entry import check_first
from coordinator.events import (
    Answer,
    Arrival,
    Decided,
    Departed,
    Disconnected,
    Effect,
    Event,
    Exchange,
    Failed,
    Finished,
    Joined,
    Left,
    MetricsArrived,
    Paced,
    PredictionArrived,
    Recall,
    Record,
    Replaced,
    Settled,
    Started,
    Synced,
    Thin,
    Ticked,
    Warn,
    Welcome,
)
from coordinator.lookahead import hiding
from coordinator.memory import Memory
from coordinator.roster import Member, Roster
from entangled import membership
from entangled.alignment import Fingerprint, Layout, Position, SampleIds
from entangled.distribution import Combination, Probabilities, soft_targets
from entangled.errors import (
    AlignmentError,
    EntangledError,
    LogError,
    MembershipError,
    PatienceError,
    ProtocolError,
    RunFailedError,
)
from entangled.experiment import Experiment
from entangled.schedule import Constant, weight_at

LINGER = 10.0
"""Seconds that a coordinator which came back waits for peers that are done but may not know it."""


# ---- state


@dataclass(frozen=True)
class Restored:
    """What a run's folder tells a coordinator that comes back."""

    fingerprint: Fingerprint
    complete: int
    """Positions in the log."""
    members: tuple[str, ...]
    """Of the last exchange in the log."""
    finals: Mapping[str, dict[str, float]]
    """The final metrics of the peers that are done."""
    lookahead: int | None = None
    """What was decided, if it was left to be decided."""


class Session:
    """One run's state. See the module's docstring for how it is driven."""

    def __init__(self, experiment: Experiment, now: float, restored: Restored | None = None) -> None:
        """Begin a run of `experiment`, or go on with it, at `now` in seconds of a monotonic clock."""
        self.experiment = experiment
        self._roster = Roster(experiment, now)
        self.members: Mapping[str, Member] = self._roster.members
        self.fingerprint: Fingerprint | None = None
        self.layout: Layout | None = None
        self.complete = 0
        self.weight = 0.0
        self.over = False
        self.lookahead: int | None = None if experiment.exchange.lookahead == "auto" else experiment.exchange.lookahead
        """Batches that a peer may be ahead of the run; None while it is to be decided."""
        self._repeated_until = 0
        self._pending: dict[int, dict[str, Arrival]] = {}
        self._memory = Memory()
        self._epoch_weight = -1, 0.0
        self._of_all = experiment.combination()
        self._batches: Batches | None = None
        self._progressed_at = now
        if restored is not None:
            self._restore(restored)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event.

        Args:
            event: what happened.
            now: seconds of a monotonic clock.

        Returns:
            What is to be done, in order.

        Raises:
            RefusedError: the sender of the event did something wrong; nothing has changed.
        """
        if self.over:
            return []
        match event:
            case PredictionArrived():
                return self._prediction(event, now)
            case Joined():
                return self._join(event, now)
            case MetricsArrived():
                return self._metrics(event, now)
            case Settled():
                return self._settle(event)
            case Paced():
                return self._pace(event)
            case Left():
                return self._leave(event, now)
            case Disconnected():
                self._roster.disconnect(event.connection, now)
                return []
            case Synced(complete):
                return [*self._memory.synced(complete, self.complete)]
            case Ticked():
                return self._tick(now)

    def order(self, epoch: int) -> SampleIds:
        """The sample order of an epoch, int64.

        Raises:
            ProtocolError: no peer has joined yet, or the run has no such epoch.
        """
        if self._batches is None:
            raise ProtocolError("the sample order is not known before a first peer has joined")
        return self._batches.order(epoch)

    @property
    def durable(self) -> int:
        """Every position before this index is on disk."""
        return self._memory.durable

    def has_joined(self, connection: int) -> bool:
        """Whether a peer speaks on this connection."""
        return self._roster.has_joined(connection)

    def waited_for(self) -> list[str]:
        """The peers without which nothing goes on, each with what is known about it."""
        return self._roster.waited_for(self._pending.get(self.complete, {}))

    def validate(self) -> None:
        """Check the invariants; for tests.

        Raises:
            RuntimeError: one does not hold.
        """
        ahead = self.lookahead or 0
        faults = [
            *self._roster.faults(),
            "something waits at a position that is complete" if any(i < self.complete for i in self._pending) else "",
            "a complete exchange was not recognised"
            if self._roster.suffice(self._pending.get(self.complete, {}))
            else "",
            "more waits than may be repeated"
            if len(self._pending) > max(1 + ahead, self._repeated_until - self.complete)
            else "",
            *self._memory.faults(self.complete, ahead),
            "batches are kept that are complete" if self._batches and self._batches.kept_before(self.complete) else "",
        ]
        if any(faults):
            raise RuntimeError("; ".join(f for f in faults if f))

    # ---- joining and leaving

    def _join(self, event: Joined, now: float) -> list[Effect]:
        check_version(event.protocol_version)
        member = self.members.get(event.peer)
        if member is None:
            raise MembershipError(
                "no such peer in this experiment", expected=" or ".join(self.members), got=event.peer or "no name"
            )
        if self._roster.has_joined(event.connection):
            name = self._roster.at(event.connection).name
            raise ProtocolError(f"this connection has joined already, as {name}")
        if member.connection is not None and member.instance != event.instance:
            raise MembershipError(
                f"peer {event.peer} is here already, from {member.origin}; this is {event.origin}. Stop one of the two"
            )
        effects = self._adopt(event.fingerprint)
        before = self._roster.connect(member, event.connection, event.instance, event.origin, now)
        if before is not None:
            effects.append(Replaced(before))
        self._progressed_at = now
        return [*effects, Welcome(event.connection, self.complete, self.lookahead)]

    def _adopt(self, announced: Fingerprint) -> list[Effect]:
        """The first peer's data set is the run's; every other one must be the same (guarantee 1)."""
        if self.fingerprint is None:
            check_first(announced, self.experiment)
            self._begin(announced)
            return [Started(announced)]
        if announced != self.fingerprint:
            raise AlignmentError(
                "this peer's data set is not the one of the peers before it",
                expected=str(self.fingerprint),
                got=str(announced),
            )
        return []

    def _begin(self, data: Fingerprint) -> None:
        self.fingerprint = data
        self.layout = self.experiment.layout(data.samples)
        self._batches = Batches(self.experiment, self.layout)
        self.weight = self._weight(Position(0, 0))
        size = len(self.members) * self.layout.rows(0) * data.classes * np.dtype(np.float32).itemsize
        # Where some may be missing, who took part is decided once: on disk before anybody trains on it, for those who
        # are left after a crash may be others.
        self._memory.fit(size, on_disk_first=self.experiment.exchange.continues)

    def _restore(self, restored: Restored) -> None:
        self._begin(restored.fingerprint)
        layout, _, _ = self._run()
        if restored.complete > layout.positions or not restored.finals.keys() <= self.members.keys():
            raise LogError("the log, or the run.json beside it, is of another run than this experiment's")
        self.complete = self._memory.durable = restored.complete
        self._roster.restore(restored.members)
        # What had been answered but was not on disk is gone; the peers, which went on, repeat it.
        if self.lookahead is None:
            self.lookahead = restored.lookahead
        self._repeated_until = restored.complete + self._memory.window + 1 + (self.lookahead or 0)
        if self.complete:
            self.weight = self._weight(layout.position(self.complete - 1))
        for name, values in restored.finals.items():
            self.members[name].final, self.members[name].done = values, True

    def _leave(self, event: Left, now: float) -> list[Effect]:
        member = self._roster.at(event.connection)
        if event.failure:
            return self._failed(member, event, now)
        if member.final is None:
            raise ProtocolError(f"peer {member.name} says it is done without its final metrics")
        effects: list[Effect] = [] if member.done else [Departed(member.name, member.final)]
        member.done = True
        member.heard = True
        self._progressed_at = now
        self._roster.disconnect(event.connection, now)
        return effects + self._end_if(all(m.heard or m.missing for m in self.members.values()))

    def _failed(self, member: Member, event: Left, now: float) -> list[Effect]:
        """A peer cannot go on; the others can, if the experiment says so."""
        if not self._roster.give_up(member):
            return self._fail(RunFailedError(f"peer {member.name} failed: {event.failure}"))
        self._roster.disconnect(event.connection, now)
        warning = Warn(f"peer {member.name} failed: {event.failure}; the others go on without it")
        return self._finish_exchanges([warning, *self._decide()], now)

    def _end_if(self, over: bool) -> list[Effect]:
        self.over = over
        return [Finished()] if over else []

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = [
            Warn(f"peer {m.name} is missing: the others go on without it until it is back and has caught up")
            for m in self._roster.note_missing(now)
        ]
        if effects:
            effects = self._finish_exchanges([*effects, *self._decide()], now)
        members = self.members.values()
        if any(m.done for m in members) and all(m.done or m.missing for m in members):
            return [*effects, *self._end_if(now - self._progressed_at > LINGER)]
        patience = self.experiment.exchange.patience
        if now - self._progressed_at <= patience:
            return effects
        where = f" at {self.layout.position(self.complete)}" if self.layout and not self._trained() else ""
        names = ", ".join(self.waited_for())
        return [*effects, *self._fail(PatienceError(f"waited {patience:g} s{where} for {names}"))]

    def _fail(self, error: EntangledError) -> list[Effect]:
        self.over = True
        return [Failed(error)]

    # ---- exchanging

    def _prediction(self, event: PredictionArrived, now: float) -> list[Effect]:
        """Take in predictions for one batch: all are checked before anything changes."""
        connections, position, digest, probabilities, sizes, received_at = event
        members = list(map(self._roster.at, connections))
        layout, batches, classes = self._run()
        index = self._check_position(members, position, layout)
        expected = batches.at(index, keep=index >= self.complete).digest
        if digest != expected:
            raise AlignmentError(
                f"peer {members[0].name}'s prediction for {position} is about other samples",
                expected=f"batch digest {expected.hex()}",
                got=digest.hex(),
            )
        check_predictions(members, position, probabilities, layout.rows(position.step), classes)
        effects: list[Effect] = []
        again = index < self.complete
        pending = {} if again else self._pending.setdefault(index, {})
        for place, member in enumerate(members):
            if index > member.reached:
                member.reached, member.position = index, position
                if again:
                    self._progressed_at = now  # it catches up, and is waited for as long as it gets on
            if not member.expected and self._roster.catch_up(member, index, self.complete):
                effects.append(Warn(f"peer {member.name} has caught up: it is expected again"))
            arrival = Arrival(probabilities[place], received_at, sizes[place], now)
            if again:
                effects += self._answer_again(connections[place], member, event, index, arrival)
            elif (first := pending.setdefault(member.name, arrival)) is not arrival:
                effects += self._warn_if_differs(member, position, arrival, first)
        return self._finish_exchanges(effects, now)

    def _check_position(self, members: list[Member], position: Position, layout: Layout) -> int:
        if position.epoch >= layout.epochs or position.step >= layout.steps_per_epoch:
            raise AlignmentError(
                f"peer {members[0].name} predicts for a batch that this run does not have",
                expected=f"{layout.epochs} epochs of {layout.steps_per_epoch} steps",
                got=str(position),
            )
        index = layout.index(position)
        if self.lookahead is None:
            raise ProtocolError("the look-ahead is still to be decided", expected="pace", got="prediction")
        if index > self.complete:
            for member in members:
                if not self._follows(member, index, self.lookahead):
                    raise AlignmentError(
                        f"peer {member.name} is ahead of the run",
                        expected=str(layout.position(self.complete)),
                        got=str(position),
                    )
        return index

    def _follows(self, member: Member, index: int, lookahead: int) -> bool:
        """Does the peer look ahead, or repeat after a restart what the log has lost, in order?"""
        within = index <= self.complete + lookahead or index < self._repeated_until
        return within and member.name in self._pending.get(index - 1, {})

    def _pace(self, event: Paced) -> list[Effect]:
        member = self._roster.at(event.connection)
        if self.lookahead is not None:
            return []
        member.pace = event.step_us, event.round_trip_us
        return self._decide()

    def _decide(self) -> list[Effect]:
        """The look-ahead, when everybody who is expected has told its pace."""
        paces = [m.pace for m in self.members.values() if m.pace is not None]
        if self.lookahead is not None or not paces or any(m.expected and m.pace is None for m in self.members.values()):
            return []
        self.lookahead = hiding(max(step for step, _ in paces), max(trip for _, trip in paces))
        return [Decided(self.lookahead)]

    def _finish_exchanges(self, effects: list[Effect], now: float) -> list[Effect]:
        """Add to `effects` what follows from every exchange that is complete now."""
        while self._roster.suffice(self._pending.get(self.complete, ())):
            self._finish_exchange(self.complete, effects, now)
            self._progressed_at = now
        return effects

    def _finish_exchange(self, index: int, effects: list[Effect], now: float) -> None:
        _, batches, _ = self._run()
        position, sample_ids, digest = batches.at(index, keep=False)
        pending = self._pending.pop(index)
        arrivals = {name: pending[name] for name in self.members if name in pending}
        targets = soft_targets([a.probabilities for a in arrivals.values()], self._combination(list(arrivals)))
        self.weight = self._weight(position)
        weight = self.weight if len(arrivals) > 1 else 0.0
        exchange = Exchange(position, index, sample_ids, digest, weight, arrivals, min(self.lookahead or 0, index), now)
        self.complete = index + 1
        members, connections, answered = self.members, list[int](), list[Probabilities]()
        for name, target in zip(arrivals, targets, strict=True):
            connection = members[name].connection
            if connection is not None:
                connections.append(connection)
                answered.append(target)
        answer = Answer(connections, position, digest, weight, answered)
        effects += self._memory.add(exchange, answer)
        effects.append(Record(exchange))

    def _settle(self, event: Settled) -> list[Effect]:
        member, before = self._roster.at(event.connection), min(m.settled for m in self.members.values())
        if event.complete > self.complete:
            raise ProtocolError(
                f"peer {member.name} settles positions that are not complete",
                expected=f"at most {self.complete}",
                got=str(event.complete),
            )
        member.settled = max(member.settled, event.complete)
        settled = min(m.settled for m in self.members.values())
        return [Thin(settled)] if settled > before and self.experiment.exchange.log != "full" else []

    def _answer_again(
        self, connection: int, member: Member, event: PredictionArrived, index: int, arrival: Arrival
    ) -> list[Effect]:
        """Answer a prediction for a complete position with what was answered first (guarantee 2)."""
        exchange = self._memory.find(index)
        if exchange is None:
            weight, said = self._weight(event.position), arrival.probabilities
            return [Recall(connection, member.name, event.position, index, event.digest, weight, said)]
        first = exchange.arrivals.get(member.name)
        warnings = [] if first is None else self._warn_if_differs(member, event.position, arrival, first)
        answer = self._answer(connection, exchange, member.name)
        return [*warnings, *self._memory.again(index, answer)]

    def _warn_if_differs(self, member: Member, position: Position, again: Arrival, first: Arrival) -> list[Effect]:
        if np.array_equal(again.probabilities, first.probabilities):
            return []
        return [Warn(f"peer {member.name} repeated {position} with another prediction; the first one stands")]

    def _metrics(self, event: MetricsArrived, now: float) -> list[Effect]:
        member = self._roster.at(event.connection)
        values = {**member.values, **event.values}
        check_metrics(member, event.values, values)
        if event.final and not self._trained():
            raise ProtocolError(f"peer {member.name} sends final metrics before the run's last batch")
        member.position, member.values = event.position, values
        if event.final:
            member.final = event.values
            self._progressed_at = now
        return []

    # ---- small things

    def _answer(self, connection: int, exchange: Exchange, peer: str) -> Answer:
        """What a peer gets from an exchange, in which it took part or not."""
        members, predictions = list(exchange.arrivals), [a.probabilities for a in exchange.arrivals.values()]
        target = membership.soft_target(peer, members, predictions, self._combination(members))
        weight = membership.weight(peer, members, self._weight(exchange.position))
        return Answer([connection], exchange.position, exchange.digest, weight, [target])

    def _combination(self, members: list[str]) -> Combination:
        return self._of_all if len(members) == len(self.members) else self.experiment.combination(members)

    def _run(self) -> tuple[Layout, Batches, int]:
        if self.layout is None or self.fingerprint is None or self._batches is None:
            raise ProtocolError("no peer has joined")
        return self.layout, self._batches, self.fingerprint.classes

    def _trained(self) -> bool:
        return self.layout is not None and self.complete == self.layout.positions

    def _weight(self, position: Position) -> float:
        epoch, known = self._epoch_weight
        if epoch == position.epoch:
            return known
        schedule, (layout, _, _) = self.experiment.exchange.weight, self._run()
        weight = float(np.float32(weight_at(schedule, position, layout)))
        if isinstance(schedule, Constant) or schedule.per == "epoch":
            self._epoch_weight = position.epoch, weight
        return weight
