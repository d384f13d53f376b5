"""Writes complete exchanges to the log on a thread of its own, so that no exchange waits for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.events import Exchange
from entangled import faults
from entangled.exchange_log import Row, Writer, genesis

GATHER_SECONDS = 0.05
"""How long exchanges pile up before they are written and synced together."""


class Recorder:
    """The log's one writer.

    `add` never blocks; everything that has piled up is written and synced in one go, after which `on_durable` is called
    on the recorder's thread with the number of positions on disk. An error of the disk is given to `on_error`, once.
    """

    def __init__(
        self,
        run: Path,
        experiment_toml: str,
        peers: int,
        on_durable: Callable[[int], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._writer = Writer(run, genesis(experiment_toml), peers)
        self._on_durable = on_durable
        self._on_error = on_error
        self._failed = False
        self._queue: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange) -> None:
        """Have an exchange written."""
        self._queue.put(exchange)

    def close(self, *, finished: bool) -> None:
        """Write what is left, and wait for that; where the run is `finished`, its last epoch is, too."""
        self._queue.put(None)
        self._thread.join()
        if finished and not self._failed:
            self._writer.finish_epoch()

    @property
    def chain(self) -> bytes:
        """The last row's chain value; to be asked for after `close`."""
        return self._writer.chain

    @property
    def resumed(self) -> int:
        """How many exchanges, from the first, the log held when it was opened."""
        return self._writer.resumed

    def _work(self) -> None:
        try:
            while True:
                first = self._queue.get()
                if first is not None:
                    time.sleep(GATHER_SECONDS)
                if self._write([first]):
                    return
        except Exception as error:  # the disk's, whatever it is: the run must hear of it
            self._failed = True
            self._on_error(error)

    def _write(self, exchanges: list[Exchange | None]) -> bool:
        """Write `exchanges` and what has come since; True if the end was among them."""
        while not self._queue.empty() and len(exchanges) < 1024:
            exchanges.append(self._queue.get())
        complete = 0
        for exchange in exchanges:
            if exchange is not None:
                self._append(exchange)
                complete = exchange.index + 1
        faults.point("coordinator", "before log write")
        self._writer.flush()
        faults.point("coordinator", "after log write")
        if complete:
            self._on_durable(complete)
        return exchanges[-1] is None

    def _append(self, exchange: Exchange) -> None:
        answered_at = max(a.received_at for a in exchange.arrivals.values())
        for peer, arrival in exchange.arrivals.items():
            self._writer.append(
                Row(
                    exchange.position,
                    exchange.index,
                    peer,
                    exchange.weight,
                    exchange.sample_ids,
                    exchange.digest,
                    arrival.probabilities,
                    0,
                    arrival.received_at,
                    answered_at - arrival.received_at,
                    arrival.size,
                )
            )
