"""Writes complete exchanges to the log on a thread of its own, so that no exchange waits for the disk."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.events import Exchange
from entangled import faults
from entangled.distribution import prediction_digest, statistics
from entangled.exchange_log import genesis
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.log_entry import Entry, Gathered
from entangled.log_writer import Writer

GATHER_SECONDS = 0.05
"""How long exchanges pile up before they are written and synced together."""

MOST_TOGETHER, BYTES_TOGETHER = 1024, 16 * 1024 * 1024
"""Exchanges that are written and synced together, and bytes of their predictions: a part of `memory.WINDOW_BYTES`, or
everybody would wait each time until all that may be answered before it is on disk is there."""

STATISTICS_BYTES = 1024 * 1024
"""Predictions that statistics are computed on at once."""


AT_ONCE_BYTES = 64 * 1024
"""Of an exchange's predictions up to which, where peers share processes, its rows are made by whoever adds it: what
they are made of is in the cache then, and the recorder's thread would keep the interpreter from the event loop for
longer. Where each peer has a process, they all wait for the event loop, and the thread is the better place."""


@dataclass(frozen=True)
class Settled:
    """Nobody will ask for positions before this index again."""

    before: int


@dataclass(frozen=True)
class _Rows:
    """Rows were made of an exchange, and maybe of more by now."""


class Recorder:
    """The log's one writer.

    `add` never blocks; what has piled up is written and synced in one go, as far as it is not too much. Then
    `on_durable` is called on the recorder's thread with the number of positions on disk. An error of the disk is given
    to `on_error`, once.
    """

    def __init__(
        self,
        run: Path,
        experiment: Experiment,
        on_durable: Callable[[int], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._writer = Writer(run, genesis(dumps(experiment)))
        self._keeps = experiment.exchange.keeps
        self._keeps_all = experiment.exchange.log == "full"
        self._experiment = experiment
        # Who waits for the disk at every exchange does not wait for more of them.
        self._gather = 0.0 if experiment.exchange.continues else GATHER_SECONDS
        self._on_durable = on_durable
        self._on_error = on_error
        self._failed = False
        self._at_once: bool | None = None
        """Whether rows are made at once; known with the first exchange, for a log has one order."""
        self._gathered = Gathered(self._writer.chain)
        """These rows, for whoever holds the lock."""
        self._lock = threading.Lock()
        self._called = False
        """Whether the thread knows that there are some."""
        self._queue: queue.SimpleQueue[Exchange | Settled | _Rows | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange) -> None:
        """Have an exchange written."""
        if self._at_once is None:
            peers, processes = len(self._experiment.peers), self._experiment.processes
            shared = processes is not None and processes < peers
            self._at_once = shared and self._keeps_all and _bytes(exchange) <= AT_ONCE_BYTES
        if not self._at_once:
            self._queue.put(exchange)
            return
        entry = _entry(exchange, None)
        with self._lock:
            self._gathered.add(entry)
            called, self._called = self._called, True
        if not called:
            self._queue.put(_Rows())

    def thin(self, before: int) -> None:
        """Nobody will ask for the predictions of positions before this index: drop those that shall not be kept."""
        self._queue.put(Settled(before))

    def close(self, *, finished: bool) -> None:
        """Write what is left and wait for it; of a run that is `finished`, finish the last epoch and thin them all."""
        self._queue.put(None)
        self._thread.join()
        if finished and not self._failed:
            self._writer.finish_epoch()
            self._writer.thin(sys.maxsize, self._keeps)

    @property
    def chain(self) -> bytes:
        """The last row's chain value; to be asked for after `close`."""
        return self._writer.chain

    @property
    def resumed(self) -> int:
        """How many exchanges, from the first, the log held when it was opened."""
        return self._writer.resumed

    @property
    def members(self) -> tuple[str, ...]:
        """Who took part in the last exchange that the log held when it was opened."""
        return self._writer.members

    def _work(self) -> None:
        began = 0.0
        try:
            while True:
                first = self._queue.get()
                most = MOST_TOGETHER
                if isinstance(first, Exchange):
                    most = max(1, min(most, BYTES_TOGETHER // _bytes(first)))
                while (left := began + self._gather - time.monotonic()) > 0 and self._queue.qsize() < most:
                    time.sleep(min(left, self._gather / 4))
                began = time.monotonic()
                if self._write(first, most):
                    return
        except Exception as error:  # the disk's, whatever it is: the run must hear of it
            self._failed = True
            self._on_error(error)

    def _write(self, first: Exchange | Settled | _Rows | None, most: int) -> bool:
        """Write `first` and what has come since, of which `most` at once; True if the end was among them."""
        items = [first]
        while not self._queue.empty() and len(items) < most:
            items.append(self._queue.get())
        exchanges = [item for item in items if isinstance(item, Exchange)]
        if self._keeps_all:
            for exchange in exchanges:
                self._writer.add(_entry(exchange, None))
        else:
            for exchange, measured in zip(exchanges, _statistics(exchanges, self._experiment), strict=True):
                self._writer.add(_entry(exchange, measured))
        with self._lock:
            made, self._called = self._gathered.take(), False
        faults.point("coordinator", "before log write")
        self._writer.write(made)
        self._writer.flush()
        faults.point("coordinator", "after log write")
        if made or exchanges:
            self._on_durable(made[-1][1].complete if made else exchanges[-1].index + 1)
        before = max((item.before for item in items if isinstance(item, Settled)), default=0)
        if before:
            self._writer.thin(before, self._keeps)
        return items[-1] is None


def _entry(exchange: Exchange, measured: npt.NDArray[np.float32] | None) -> Entry:
    position, index, sample_ids, digest, weight, arrivals, staleness, completed = exchange
    predictions, received_at, sizes, times = zip(*arrivals.values(), strict=True)
    peers = tuple(arrivals)
    return Entry(
        position,
        index,
        peers,
        weight,
        sample_ids,
        digest,
        predictions[0].shape,
        staleness,
        peers,
        predictions,
        None if measured is None else [prediction_digest(p) for p in predictions],
        measured,
        received_at,
        [round((completed - at) * 1e6) for at in times],
        sizes,
    )


def _statistics(exchanges: Sequence[Exchange], experiment: Experiment) -> Iterator[npt.NDArray[np.float32]]:
    """`entangled.distribution.statistics` of each, as many at once as is fast."""
    begin = 0
    while begin < len(exchanges):
        predictions, members = [_predictions(exchanges[begin])], list(exchanges[begin].arrivals)
        most = STATISTICS_BYTES // predictions[0].nbytes
        for exchange in exchanges[begin + 1 : begin + most]:
            found = _predictions(exchange)
            if found.shape != predictions[0].shape or list(exchange.arrivals) != members:
                break
            predictions.append(found)
        begin += len(predictions)
        yield from statistics(np.stack(predictions, axis=1), experiment.combination(members))


def _bytes(exchange: Exchange) -> int:
    return sum(arrival.probabilities.nbytes for arrival in exchange.arrivals.values()) or 1


def _predictions(exchange: Exchange) -> npt.NDArray[np.float32]:
    return np.stack([arrival.probabilities for arrival in exchange.arrivals.values()])
