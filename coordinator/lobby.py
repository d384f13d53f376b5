"""How many callers at once, and for how long: what strangers hold of a coordinator has a bound."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from entangled import codec
from entangled.alignment import Fingerprint
from entangled.errors import UnreachableError
from entangled.experiment import Experiment

T = TypeVar("T")

FIRST_SECONDS = 60.0
"""From the beginning of a call to its first message: as long as our peers wait for a reply."""

ANSWER_SECONDS = 60.0
"""To take an experiment or an epoch's order in."""

ANSWERS, ORDERS, WATCHERS = 64, 8, 64
"""At once, and one more order for each peer: each that is being read keeps an epoch's order in memory."""

CONNECTIONS, STREAMS = 256, 64
"""Connections at once where there are few peers, and calls on each."""

MOST_CLASSES = 65_536
"""That a message has room for while the number of classes is not known."""

SMALL_BYTES = 64 * 1024
"""What every message may have: joins, metrics, and predictions of small batches."""


class Room:
    """Waits for others' work, a bounded number at once.

    When one more comes, one has to go, which may come again: of the host that has most here, the one that has been here
    longest. Were it the newest, whoever holds the places would keep everybody out.

    Args:
        places: how many.
        seconds: for how long each; None for as long as it takes.
        what: what everybody in it does, for messages.
    """

    def __init__(self, places: int, seconds: float | None, what: str) -> None:
        self._places = places
        self._seconds = seconds
        self._what = what
        self._inside: dict[asyncio.Task[Any], str] = {}
        """Each with its host, in the order in which they came."""

    def __len__(self) -> int:
        """How many are inside."""
        return len(self._inside)

    async def hold(self, work: Coroutine[Any, Any, T], host: str) -> T:
        """Do `work` for somebody from `host`.

        Raises:
            UnreachableError: it took too long, or had to make place for somebody who came later. Whoever it was may
                try again.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(_retrieve)
        self._inside[task] = host
        if len(self._inside) > self._places:
            ((most, _),) = Counter(self._inside.values()).most_common(1)
            longest = next(inside for inside, of in self._inside.items() if of == most)
            del self._inside[longest]
            longest.cancel()
        try:
            await asyncio.wait({task}, timeout=self._seconds)
        finally:
            self._inside.pop(task, None)
            late = task.cancel()  # False if it is done, and True if this very wait was cancelled, too
        if late:
            raise UnreachableError(f"the coordinator has waited {self._seconds:g} s to {self._what}")
        if task.cancelled():
            raise UnreachableError(f"the coordinator is busy: too many callers {self._what}")
        return task.result()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at how it ended, which nobody may ask for any more."""
    if not task.cancelled():
        task.exception()


class Lobby:
    """The rooms of one coordinator.

    Args:
        peers: how many the experiment has.
    """

    def __init__(self, peers: int) -> None:
        self.waiting = Room(16 + 2 * peers, FIRST_SECONDS, "hear the first message")
        self.answers = Room(ANSWERS + peers, ANSWER_SECONDS, "give an answer")
        self.orders = Room(ORDERS + peers, ANSWER_SECONDS, "give an epoch's order")
        self.watchers = Room(WATCHERS, None, "watch")


def limits(experiment: Experiment, data: Fingerprint | None) -> list[tuple[str, int]]:
    """GRPC's own limits, for a run of `experiment` on `data`, where that is known already."""
    return [
        ("grpc.max_receive_message_length", message_bytes(experiment, data)),
        ("grpc.max_allowed_incoming_connections", max(CONNECTIONS, 4 * len(experiment.peers))),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.server_handshake_timeout_ms", 20_000),  # also from the connection to HTTP/2's first frame
        ("grpc.max_connection_idle_ms", 120_000),  # without a call; a peer's stream is one
    ]


def message_bytes(experiment: Experiment, data: Fingerprint | None) -> int:
    """The largest message that a run of `experiment` needs: a prediction, which is one float32 per row and class."""
    classes = data.classes if data else (experiment.exchange.classes or MOST_CLASSES)
    return min(codec.MAX_MESSAGE_BYTES, experiment.batch_size * classes * codec.FLOAT.itemsize + SMALL_BYTES)
