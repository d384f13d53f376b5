"""Proves a log: what was exchanged is all there, in order, unchanged, and what the experiment says it had to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from entangled.alignment import Position, SampleIds, batch_digest, sample_order
from entangled.distribution import STATISTICS, check, prediction_digest, statistics
from entangled.errors import LogError, PredictionError
from entangled.exchange_log import Row, chain, folder, from_batch, genesis, partitions, read_batches
from entangled.log.reader import Note, Run, ignore
from entangled.schedule import weight_at


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong with a log."""

    file: str
    position: Position | None
    """Where the fault stands; None if it is about the log as a whole."""
    peer: str
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        where = f"{self.position} peer {self.peer}: " if self.position else ""
        return f"{self.file}: {where}{self.what} (expected {self.expected}; got {self.got})"


@dataclass(frozen=True)
class Verdict:
    """What was proven: every exchange before the fault, or all."""

    exchanges: int
    of: int
    """How many the whole run has."""
    finished: bool
    without_predictions: int
    """Of the exchanges, those whose predictions are not kept: that their digests and statistics are theirs is not
    proven."""
    fault: Fault | None
    not_by_all: int = 0
    """Of the exchanges, those in which not every peer took part."""


@dataclass(frozen=True)
class _Expected:
    """What an exchange's rows must be, by the experiment alone."""

    position: Position
    index: int
    weight: float
    """The schedule's."""
    sample_ids: SampleIds


def verify(run: Run, note: Note = ignore) -> Verdict:
    """Check a run's log from its first row to the first fault.

    Every row stands where it must (epoch, step, index, peer), one of each of the exchange's members, who are all peers
    or as many as the experiment says; is about the samples that the experiment's sample order gives, under their
    digest; has the schedule's λ, or 0 where its peer was alone; has a valid prediction, under its digest, with its
    statistics; and continues the hash chain, which starts from `experiment.toml`. The log of a finished run has every
    position, and ends in the `chain` of `summary.json`. Where the experiment says that a prediction is not kept, what
    was written of it is proven to be unchanged, but not to be true.

    Args:
        run: as opened.
        note: is told what cannot be proven: without predictions, or about the log of a run that is not finished.
    """
    walk = _Walk(run, note)
    fault: tuple[str, str, str] | None = None
    try:
        walk.all()
    except _Differs as difference:
        fault = difference.fields
    except LogError as error:
        what = error.message.removeprefix(f"{walk.path} ")
        fault = what, error.expected or "whole rows", error.got or "damage"
    position, peer = (walk.want.position, walk.peer) if walk.want else (None, "")
    return Verdict(
        walk.exchanges,
        run.layout.positions,
        run.summary is not None,
        walk.without_predictions,
        Fault(str(walk.path), position, peer, *fault) if fault else None,
        walk.not_by_all,
    )


class _Differs(Exception):  # noqa: N818
    """A row is not what it must be."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        self.fields = what, str(expected), str(got)


class _Walk:
    """Walks through a log, row by row; where it stands when it raises is where the fault is."""

    def __init__(self, run: Run, note: Note) -> None:
        self.path = folder(run.folder)
        self.exchanges = self.without_predictions = self.not_by_all = 0
        self.peer = run.peers[0]
        self._run, self._note = run, note
        self._link = genesis(run.toml)
        self._expected = _expected(run)
        self._exchange: list[Row] = []
        self.want = next(self._expected, None)

    def all(self) -> None:
        """Raise `_Differs`, or LogError where a file cannot be read, at the first fault."""
        for epoch, path in partitions(self._run.folder):
            self.path = path
            for batch in read_batches(self.path, self._note):
                for row, stored in from_batch(batch, epoch):
                    self._row(row, stored)
        self._end()

    def _row(self, row: Row, stored: bytes) -> None:
        if self.want is None:
            raise _Differs("there is a row behind the run's last", "no more rows", _place(row))
        members = self._exchange[0].members if self._exchange else row.members
        if not self._exchange:
            self.peer = next((peer for peer in self._run.peers if peer in members), self._run.peers[0])
        _check(self._run, self.want, self.peer, members, row)
        self._link = chain(self._link, row)
        if stored != self._link:
            what = "this is not the row that was written: the hash chain breaks"
            if self.exchanges == 0 and not self._exchange:
                what = "the hash chain does not start from experiment.toml, or this is not the row that was written"
            raise _Differs(what, self._link.hex(), stored.hex())
        self._exchange.append(row)
        if len(self._exchange) < len(members):
            self.peer = members[len(self._exchange)]
            return
        self._whole_exchange()
        self.exchanges += 1
        self.not_by_all += len(members) < len(self._run.peers)
        self.want, self.peer = next(self._expected, None), self._run.peers[0]

    def _whole_exchange(self) -> None:
        """Check what an exchange's rows say together: the statistics, which hang on all members' predictions."""
        exchange, self._exchange = self._exchange, []
        kept = [row.prediction for row in exchange if row.prediction is not None]
        if not kept:
            self.without_predictions += 1
            return
        if len(kept) < len(exchange):
            self.peer = next(row.peer for row in exchange if row.prediction is None)
            raise _Differs("the prediction is missing, while other peers' are kept", "all or none", "some")
        if self._run.experiment.exchange.log == "full":
            return  # nothing is stored that could differ
        combination = self._run.experiment.combination(exchange[0].members)
        for row, computed in zip(exchange, statistics(np.stack(kept), combination), strict=True):
            # The last bits hang on the processor.
            stored = np.full_like(computed, np.nan) if row.statistics is None else row.statistics
            close = np.isclose(stored, computed, rtol=1e-5, atol=1e-6, equal_nan=True)
            if not close.all():
                self.peer, place = row.peer, int(np.flatnonzero(~close)[0])
                what = f"{STATISTICS[place]} is not that of the predictions"
                raise _Differs(what, computed[place], stored[place])

    def _end(self) -> None:
        exchanges, summary = self.exchanges, self._run.summary
        if self.without_predictions:
            self._note(
                f"the predictions of {self.without_predictions} of {exchanges} exchanges are not kept (exchange.log = "
                f"{_mode(self._run)}): that they were distributions, and have the digests and statistics in the log, "
                "cannot be proven"
            )
        if self.not_by_all:
            self._note(f"not every peer took part in {self.not_by_all} of {exchanges} exchanges")
        if self.want is not None and (self._exchange or summary is not None):
            raise _Differs("the log ends before this row", _names(self.want, self.peer), "no more rows")
        if summary is None:
            self._note(
                f"the run is not finished: its log holds {exchanges} of {self._run.layout.positions} exchanges; that "
                "there were no more of them, and the hash chain's end, cannot be proven"
            )
            return
        self.path = self._run.folder / "summary.json"
        if summary.get("chain") != self._link.hex():
            raise _Differs("the hash chain's end is not the log's", self._link.hex(), summary.get("chain"))
        if summary.get("exchanges") != exchanges:
            raise _Differs("the number of exchanges is not the log's", exchanges, summary.get("exchanges"))


def _expected(run: Run) -> Iterator[_Expected]:
    layout, exchange = run.layout, run.experiment.exchange
    ids = np.arange(run.samples, dtype=np.int64)
    for epoch in range(layout.epochs):
        order = sample_order(ids, exchange.shuffle_buffer, run.experiment.seed, epoch)
        for step in range(layout.steps_per_epoch):
            position = Position(epoch, step)
            weight = float(np.float32(weight_at(exchange.weight, position, layout)))
            yield _Expected(position, layout.index(position), weight, layout.batch(order, step))


def _check(run: Run, want: _Expected, peer: str, members: tuple[str, ...], row: Row) -> None:
    """Raise `_Differs` unless `row` is, but for what the peer predicted, what is wanted here.

    Args:
        run: as opened.
        want: the exchange's.
        peer: whose row must stand here.
        members: of the exchange, as its first row has them.
        row: that stands here.
    """
    _check_place(run, want, peer, row)
    _check_members(run, members, row)
    shape = len(want.sample_ids), run.classes
    if row.shape != shape:
        raise _Differs("the prediction's shape is wrong", shape, row.shape)
    if len(row.sample_ids) != len(want.sample_ids):
        raise _Differs("the number of sample ids is wrong", len(want.sample_ids), len(row.sample_ids))
    other = np.flatnonzero(row.sample_ids != want.sample_ids)
    if other.size:
        place = int(other[0])
        what = f"sample {place} of the batch is not the one that the sample order gives"
        raise _Differs(what, f"sample id {want.sample_ids[place]}", f"sample id {row.sample_ids[place]}")
    digest = batch_digest(want.position, row.sample_ids)
    if row.digest != digest:
        raise _Differs("the batch digest is not that of the sample ids", digest.hex(), row.digest.hex())
    weight = want.weight if len(members) > 1 else 0.0
    if row.weight != weight:
        what = "λ is not the schedule's" if len(members) > 1 else "λ is not 0, though this peer was alone"
        raise _Differs(what, weight, row.weight)
    if row.staleness != min(run.lookahead, row.index):
        raise _Differs("the staleness is not the look-ahead's", min(run.lookahead, row.index), row.staleness)
    _check_prediction(run, row)


def _check_members(run: Run, members: tuple[str, ...], row: Row) -> None:
    if row.members != members:
        raise _Differs("the members are not those of the exchange's first row", _list(members), _list(row.members))
    exchange = run.experiment.exchange
    least = exchange.least if exchange.continues else len(run.peers)
    if members != tuple(peer for peer in run.peers if peer in members) or len(members) < least:
        expected = f"at least {least} of {_list(run.peers)}, in this order"
        raise _Differs("the experiment does not allow these members", expected, _list(members))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nobody"


def _check_prediction(run: Run, row: Row) -> None:
    _check_derived(run, row)
    if row.prediction is None:
        if run.experiment.exchange.keeps(row.index):
            raise _Differs("the prediction is missing", f"kept, with exchange.log = {_mode(run)}", "no prediction")
        return
    try:
        check(row.prediction, *row.shape)
    except PredictionError as error:
        raise _Differs(f"the prediction is no distribution: {error.message}", error.expected, error.got) from None
    digest = prediction_digest(row.prediction)
    if row.prediction_digest not in (None, digest):
        what = "this is not the prediction that was written: its digest is another"
        raise _Differs(what, row.prediction_digest.hex(), digest.hex())


def _check_derived(run: Run, row: Row) -> None:
    """Digest and statistics are stored in a log whose predictions go, and only there."""
    expected = run.experiment.exchange.log != "full"
    stored = row.prediction_digest is not None, row.statistics is not None
    if stored != (expected, expected):
        names = ("the digest", "no digest"), ("statistics", "no statistics")
        got = ", ".join(name[not there] for name, there in zip(names, stored, strict=True))
        wanted = ", ".join(name[not expected] for name in names)
        raise _Differs(f"what is stored beside the prediction is not exchange.log = {_mode(run)}'s", wanted, got)


def _mode(run: Run) -> str:
    exchange = run.experiment.exchange
    return exchange.log if exchange.log_every is None else f"{exchange.log}, exchange.log_every = {exchange.log_every}"


def _check_place(run: Run, want: _Expected, peer: str, row: Row) -> None:
    got = row.position, row.index, row.peer
    if got == (want.position, want.index, peer):
        return
    names = _names(want, peer)
    if row.peer not in run.peers:
        raise _Differs("the row is of no peer of the experiment", names, _place(row))
    peers = {name: place for place, name in enumerate(run.peers)}
    if row.index != run.layout.index(row.position):
        raise _Differs("the row's index is not its position's", names, _place(row))
    if (row.index, peers[row.peer]) < (want.index, peers[peer]):
        raise _Differs("an earlier row stands here: duplicated, or out of order", names, _place(row))
    raise _Differs("a later row stands here: this one is missing, or out of order", names, _place(row))


def _names(want: _Expected, peer: str) -> str:
    return f"{want.position} (index {want.index}) peer {peer}"


def _place(row: Row) -> str:
    return f"{row.position} (index {row.index}) peer {row.peer}"
