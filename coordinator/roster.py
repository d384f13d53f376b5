"""The peers of a run: which are here, which are missing, and whom an exchange needs. Pure, as the session is.

Where the experiment says `on_missing = "continue"`, a peer is *missing* once it has been without a connection for
`missing_after` seconds while somebody else was there. A peer that is connected is never missing, however slow it is.
Exchanges are then complete without it, as long as `min_peers` take part. When it comes back it catches up, and is
expected again as soon as it is near; or when it has covered what it lacked and finds that the run got on so much
meanwhile that it will never be near by itself: then the others wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from entangled.alignment import Position
from entangled.errors import ProtocolError
from entangled.experiment import Experiment

NEAR = 64
"""Positions behind the run at which a peer that was missing is expected again."""


@dataclass
class Member:
    """What the session knows of one peer."""

    name: str
    connection: int | None = None
    instance: str = ""
    origin: str = ""
    position: Position = field(default_factory=lambda: Position(0, 0))
    values: dict[str, float] = field(default_factory=dict[str, float])
    final: dict[str, float] | None = None
    pace: tuple[int, int] | None = None
    """Of a step and of a round trip, in microseconds."""
    reached: int = -1
    """The furthest index that this process has predicted for."""
    settled: int = 0
    """It will not ask for positions before this index again."""
    done: bool = False
    heard: bool = False
    """It knows that it is done; after a restart of the coordinator it may not."""
    expected: bool = True
    """No exchange is complete without it; False from when it is missing until it has caught up."""
    away_since: float = -math.inf
    """When its connection ended."""
    goal: int = 0
    """While it catches up: where the run stood when it began to, and how far it was behind that; 0 before it has."""
    behind: int = 0

    @property
    def missing(self) -> bool:
        """Whether nothing waits for it, and it is not there."""
        return not self.expected and self.connection is None


class Roster:
    """The members of one run, by name in the experiment's order, and by connection."""

    def __init__(self, experiment: Experiment, now: float) -> None:
        self.members = {name: Member(name) for name in experiment.peer_names}
        self._least = experiment.exchange.least
        self._missing_after = experiment.exchange.missing_after
        self._by_connection: dict[int, Member] = {}
        self._company_since = now
        """Since when somebody has been here: nobody is missed while nobody is."""
        self._needed = 0
        """So many predictions an exchange needs. Kept, for everybody's prediction asks whether it was the last."""
        self._count()

    def at(self, connection: int) -> Member:
        """Who speaks on a connection.

        Raises:
            ProtocolError: nobody has joined on it.
        """
        member = self._by_connection.get(connection)
        if member is None:
            raise ProtocolError("the first message must be a join", expected="join", got="another message")
        return member

    def has_joined(self, connection: int) -> bool:
        """Whether a peer speaks on this connection."""
        return connection in self._by_connection

    def connect(self, member: Member, connection: int, instance: str, origin: str, now: float) -> int | None:
        """Let a member speak on a connection; the number of the one on which it spoke before, if it did."""
        if not self._somebody_is_here():
            self._company_since = now
        before = member.connection
        if before is not None:
            del self._by_connection[before]
        if member.instance != instance:
            member.reached = -1
        member.goal = member.behind = 0
        member.connection, member.instance, member.origin = connection, instance, origin
        self._by_connection[connection] = member
        return before

    def disconnect(self, connection: int, now: float) -> None:
        """Note that a connection has ended, if a member spoke on it."""
        member = self._by_connection.pop(connection, None)
        if member is not None:
            member.connection, member.away_since = None, now

    def restore(self, members: Collection[str]) -> None:
        """Expect only those who took part in the last exchange before a restart; the others were missing."""
        for member in self.members.values():
            member.expected = self._missing_after is None or not members or member.name in members
        self._count()

    def note_missing(self, now: float) -> list[Member]:
        """Those who are missing from now on."""
        after = self._missing_after
        if after is None or not self._somebody_is_here():
            return []
        found = [
            m
            for m in self.members.values()
            if m.expected
            and not m.done
            and m.connection is None
            and now - max(m.away_since, self._company_since) > after
        ]
        for member in found:
            member.expected = False
        self._count()
        return found

    def give_up(self, member: Member) -> bool:
        """Take a member that failed for missing at once; False if the experiment wants it, or too few are left."""
        left = sum(m.expected for m in self.members.values() if m is not member)
        if self._missing_after is None or left < self._least:
            return False
        member.expected = False
        self._count()
        return True

    def catch_up(self, member: Member, index: int, complete: int) -> bool:
        """Whether a member that predicts for `index` and was missing is expected again from now on."""
        if member.expected:
            return False
        behind = complete - index
        if behind > NEAR and index >= member.goal:  # it has covered what it lacked, or begins to
            if member.behind and behind > member.behind // 2:
                member.expected = True
            member.goal, member.behind = complete, behind
        member.expected = member.expected or behind <= NEAR
        self._count()
        return member.expected

    def suffice(self, arrived: Collection[str]) -> bool:
        """Whether an exchange is complete with the predictions of these."""
        if len(arrived) < self._needed or len(arrived) == len(self.members):
            return len(arrived) >= self._needed
        return all(m.name in arrived for m in self.members.values() if m.expected)

    def waited_for(self, arrived: Collection[str]) -> list[str]:
        """Those without whom nothing goes on, each with what is known about it."""
        enough = sum(m.expected for m in self.members.values()) >= self._least
        waited_for = [
            m for m in self.members.values() if not m.done and m.name not in arrived and (m.expected or not enough)
        ]
        return [f"{m.name} ({'connected' if m.connection is not None else 'not connected'})" for m in waited_for]

    def faults(self) -> list[str]:
        """The invariants that do not hold; for tests."""
        connected = {m.connection: m for m in self.members.values() if m.connection is not None}
        never = self._missing_after is None and not all(m.expected for m in self.members.values())
        counted, _ = self._needed, self._count()
        return [
            *(["it is not known how many predictions an exchange needs"] if counted != self._needed else []),
            *(["two peers on one connection"] if connected != self._by_connection else []),
            *(["somebody is missing, though the others wait"] if never else []),
        ]

    def _count(self) -> None:
        self._needed = max(self._least, sum(m.expected for m in self.members.values()))

    def _somebody_is_here(self) -> bool:
        return any(m.connection is not None or m.done for m in self.members.values())
