"""What happens to a session and what it wants done: the events in and the effects out, as data.

What there is several of for each exchange is a named tuple, which takes a tenth of the time to make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import Probabilities
from entangled.errors import EntangledError

# ---- events


@dataclass(frozen=True)
class Joined:
    """A process asks to be a peer, on a connection."""

    connection: int
    peer: str
    instance: str
    origin: str
    protocol_version: int
    fingerprint: Fingerprint


class PredictionArrived(NamedTuple):
    """A prediction came in on a connection, or one on each of several: all are taken in, or none."""

    connections: Sequence[int]
    position: Position
    digest: bytes
    probabilities: Sequence[Probabilities]
    """`(rows, classes)` float32 each, in the same order."""
    sizes: Sequence[int]
    """Bytes on the wire of each: of a message that brought several, its share."""
    received_at: int
    """Microseconds by the wall clock, for the log only."""

    def apart(self) -> Iterator[PredictionArrived]:
        """Each connection's by itself."""
        for connection, said, size in zip(self.connections, self.probabilities, self.sizes, strict=True):
            yield self._replace(connections=(connection,), probabilities=(said,), sizes=(size,))


@dataclass(frozen=True)
class MetricsArrived:
    """A peer's scalars by name."""

    connection: int
    position: Position
    values: dict[str, float]
    epoch_end: bool
    final: bool


@dataclass(frozen=True)
class Paced:
    """A peer tells how long a step and a round trip take it, in microseconds."""

    connection: int
    step_us: int
    round_trip_us: int


@dataclass(frozen=True)
class Settled:
    """A peer has a checkpoint, and will not ask for positions before index `complete` again."""

    connection: int
    complete: int


@dataclass(frozen=True)
class Left:
    """A peer says goodbye: done, or failed."""

    connection: int
    failure: str


@dataclass(frozen=True)
class Disconnected:
    """A connection ended without goodbye."""

    connection: int


class Synced(NamedTuple):
    """The log holds every position before `complete` on disk."""

    complete: int


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


Event = Joined | PredictionArrived | MetricsArrived | Paced | Settled | Left | Disconnected | Synced | Ticked


# ---- effects


class Arrival(NamedTuple):
    """One prediction of a batch, and when it came: in microseconds by the wall clock, in seconds by the session's."""

    probabilities: Probabilities
    received_at: int
    size: int
    at: float = 0.0


class Exchange(NamedTuple):
    """A complete exchange: one batch's predictions, of which each member gets the others' combined."""

    position: Position
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    sample_ids: SampleIds
    digest: bytes
    weight: float
    """λ in force; 0 where one was alone."""
    arrivals: dict[str, Arrival]
    """By member, in the experiment's order."""
    staleness: int = 0
    """How many updates before the batch's own the predictions were made."""
    at: float = 0.0
    """When it was complete, by the session's clock, which never goes back."""


@dataclass(frozen=True)
class Welcome:
    """Tell a connection that it is in."""

    connection: int
    complete: int
    lookahead: int | None = 0
    """None while it is to be decided."""


@dataclass(frozen=True)
class Decided:
    """The run's look-ahead is known now: keep it with the run, and tell everybody."""

    lookahead: int


@dataclass(frozen=True)
class Started:
    """The data set is known now: keep it with the run."""

    fingerprint: Fingerprint


class Answer(NamedTuple):
    """Send soft targets for one batch: one to each of these connections."""

    connections: list[int]
    position: Position
    digest: bytes
    weight: float
    probabilities: list[Probabilities]
    """`(rows, classes)` float32 each, in the same order."""


@dataclass(frozen=True)
class Recall:
    """Answer a prediction for a position that only the log remembers: with what was answered first."""

    connection: int
    peer: str
    position: Position
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    digest: bytes
    weight: float
    """The schedule's."""
    probabilities: Probabilities
    """What was repeated, to be compared with what is in the log."""


class Record(NamedTuple):
    """Write a complete exchange to the log."""

    exchange: Exchange


@dataclass(frozen=True)
class Thin:
    """The log need not answer positions before index `before` again: their predictions may go."""

    before: int


@dataclass(frozen=True)
class Warn:
    """Something a person should know."""

    message: str


@dataclass(frozen=True)
class Replaced:
    """A process came back on a new connection; close its old one."""

    connection: int


@dataclass(frozen=True)
class Departed:
    """A peer is done: keep its final metrics with the run, so that a restarted coordinator does not wait for it."""

    peer: str
    values: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """Every peer is done."""


@dataclass(frozen=True)
class Failed:
    """The run is over for everybody."""

    error: EntangledError


Effect = Welcome | Decided | Started | Answer | Recall | Record | Thin | Warn | Replaced | Departed | Finished | Failed
