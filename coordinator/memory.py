"""What a session remembers of complete exchanges: the last ones, and answers that wait for the disk. Pure."""

from __future__ import annotations

from coordinator.events import Answer, Exchange

REMEMBERED = 64
"""Complete exchanges that are kept in memory, to answer a peer that lost its connection before the answer came; less
where predictions are large. Older ones are answered from the log."""

WINDOW = 512
"""Exchanges that may be answered before they are on disk; less where predictions are large."""

WINDOW_BYTES = 64 * 1024 * 1024
"""Bytes of predictions that may be answered before they are on disk."""


class Memory:
    """The last complete exchanges of a run, by index, and the answers that wait for the disk."""

    def __init__(self) -> None:
        self.durable = 0
        """Every position before this index is on disk."""
        self.window = WINDOW
        self._remembered = REMEMBERED
        self._recent: dict[int, Exchange] = {}
        self._held: list[tuple[int, Answer]] = []

    def fit(self, size: int, *, on_disk_first: bool) -> None:
        """Remember no more than is good.

        Args:
            size: bytes of the predictions of one exchange.
            on_disk_first: nothing may be answered before it is on disk.
        """
        self.window = 0 if on_disk_first else max(8, min(WINDOW, WINDOW_BYTES // size))
        self._remembered = max(1, min(REMEMBERED, WINDOW_BYTES // size))

    def find(self, index: int) -> Exchange | None:
        """The exchange at an index, if it is remembered."""
        return self._recent.get(index)

    def add(self, exchange: Exchange, answer: Answer) -> list[Answer]:
        """Take in a complete exchange, and what answers it.

        Returns:
            The answer, if it may be given now: not where the disk is behind, so that nobody goes on before it has
            caught up.
        """
        self._recent[exchange.index] = exchange
        return self._given(exchange.index, answer)

    def again(self, index: int, answer: Answer) -> list[Answer]:
        """The same for an answer to one connection that asks once more; if the first still waits, that one will do."""
        asked = answer.connections[0]
        waits = any(i == index and asked in held.connections for i, held in self._held)
        return [] if waits else self._given(index, answer)

    def _given(self, index: int, answer: Answer) -> list[Answer]:
        if not answer.connections:
            return []
        if index < self.durable + self.window:
            return [answer]
        self._held.append((index, answer))
        return []

    def synced(self, durable: int, complete: int) -> list[Answer]:
        """Every position before `durable` is on disk, of `complete` ones: forget what the log can answer.

        Returns:
            The answers that waited for it.
        """
        self.durable = durable
        forgotten = min(durable, complete - self._remembered)
        for index in [index for index in self._recent if index < forgotten]:
            del self._recent[index]
        if not self._held:
            return []
        end = durable + self.window
        released = [answer for index, answer in self._held if index < end]
        self._held = [(index, answer) for index, answer in self._held if index >= end]
        return released

    def faults(self, complete: int, ahead: int) -> list[str]:
        """The invariants that do not hold; for tests."""
        return [
            "too much is remembered" if len(self._recent) > self.window + self._remembered + 1 + ahead else "",
            "more is answered than may be lost" if complete - self.durable > self.window + 1 + ahead else "",
        ]
