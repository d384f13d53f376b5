"""Writes complete exchanges to the log on a thread of its own, so that no exchange waits for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.session import Exchange
from entangled.distribution import agreement
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
        on_durable: Callable[[int], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._writer = Writer(run, genesis(experiment_toml))
        self._on_durable = on_durable
        self._on_error = on_error
        self._queue: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        self._epoch = -1
        self._agreeing: npt.NDArray[np.float64] = np.zeros(0)
        self._rows = 0
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange) -> None:
        """Have an exchange written."""
        self._queue.put(exchange)

    def close(self) -> None:
        """Write what is left, finish the last epoch, and wait for that."""
        self._queue.put(None)
        self._thread.join()

    @property
    def chain(self) -> bytes:
        """The last row's chain value; to be asked for after `close`."""
        return self._writer.chain

    def agreement(self) -> list[float]:
        """Per peer, in order: the share of the last epoch's samples on which it agreed with the other peers."""
        return (self._agreeing / max(self._rows, 1)).tolist()

    def _work(self) -> None:
        try:
            while True:
                first = self._queue.get()
                if first is not None:
                    time.sleep(GATHER_SECONDS)
                last = self._write([first])
                if last:
                    self._writer.finish_epoch()
                    return
        except Exception as error:  # the disk's, whatever it is: the run must hear of it
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
        self._writer.flush()
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
        if exchange.position.epoch != self._epoch:
            self._epoch, self._rows, self._agreeing = exchange.position.epoch, 0, np.zeros(len(exchange.arrivals))
        rows = len(exchange.sample_ids)
        self._agreeing += agreement([a.probabilities for a in exchange.arrivals.values()]) * rows
        self._rows += rows
