"""Reads a run's folder: what it is about, and its log as whole exchanges, streaming.

Memory does not grow with the log: a record batch is read at a time, some megabytes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.compute import call_function

from entangled.alignment import Layout, Position
from entangled.distribution import prediction_digest
from entangled.errors import LogError
from entangled.exchange_log import DERIVED, SCHEMA, partitions, read_batches
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.log.block import Block, Exchange, Stored

Note = Callable[[str], None]
"""Is told, in one line, what somebody who reads an unfinished log should know."""


def ignore(_: str) -> None:
    """A `Note` for those who do not want to know."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says about the run, beside its log."""

    folder: Path
    toml: str
    """`experiment.toml`."""
    experiment: Experiment
    samples: int
    classes: int
    contents_digest: str
    """Of the data set, in hex; empty where the data is not shared."""
    summary: dict[str, Any] | None
    """`summary.json`; None while the run is not finished."""
    lookahead: int = 0
    """Batches that predictions were published ahead."""

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers' names, in order."""
        return self.experiment.peer_names

    @property
    def layout(self) -> Layout:
        """How the run divides into batches."""
        return self.experiment.layout(self.samples)


def started(folder: Path) -> bool:
    """Whether the first peer has joined, so that the run can be opened."""
    return (folder / "run.json").exists() and "samples" in _json(folder / "run.json")


def finished(folder: Path) -> bool:
    """Whether the run is over and its log complete."""
    return (folder / "summary.json").exists()


def open_run(folder: Path) -> Run:
    """Read what a run's folder says.

    Raises:
        LogError: `folder` is no run's, or the run has no log yet.
        ExperimentError: its experiment is not valid.
    """
    if not (folder / "experiment.toml").exists():
        raise LogError(f"{folder} is not a run's folder: it has no experiment.toml")
    if not started(folder):
        raise LogError(f"{folder} has no exchanges yet: no peer has joined")
    toml = (folder / "experiment.toml").read_text("utf-8")
    run, path = _json(folder / "run.json"), folder / "experiment.toml"
    try:
        samples, classes = int(run["samples"]), int(run["classes"])
    except (KeyError, TypeError, ValueError):
        raise LogError(f"{folder / 'run.json'} does not say how many samples and classes the run has") from None
    experiment = loads(toml, str(path))
    return Run(
        folder,
        toml,
        experiment,
        samples,
        classes,
        str(run.get("contents_digest", "")),
        _json(folder / "summary.json") if finished(folder) else None,
        int(run.get("lookahead", 0)) if experiment.exchange.lookahead == "auto" else experiment.exchange.lookahead,
    )


def exchanges(
    run: Run, note: Note = ignore, epochs: Collection[int] | None = None, after: int = -1
) -> Iterator[Exchange]:
    """The exchanges of a run's log, in order, one at a time; arguments and errors as of `blocks`."""
    for block in blocks(run, note, epochs, after):
        yield from block.exchanges()


def blocks(run: Run, note: Note = ignore, epochs: Collection[int] | None = None, after: int = -1) -> Iterator[Block]:
    """The exchanges of a run's log, in order, many at a time.

    Args:
        run: as opened.
        note: is told what cannot be read because it was not, or not wholly, written.
        epochs: only these.
        after: only exchanges behind this index.

    Raises:
        LogError: a file is damaged, or its rows are not whole exchanges of this run's peers.
    """
    for epoch, path in partitions(run.folder):
        if epochs is None or epoch in epochs:
            for block in _blocks(run, epoch, path, read_batches(path, note)):
                if block.indexes[-1] > after:
                    yield block if block.indexes[0] > after else block.where(block.indexes > after)


def with_predictions(run: Run, found: Iterable[Block], note: Note) -> Iterator[Block]:
    """Those blocks whose predictions are kept.

    Args:
        run: as opened.
        found: blocks of its log.
        note: is told how many exchanges were left out.

    Raises:
        LogError: there are blocks, and none has predictions.
    """
    exchanges = kept = 0
    for block in found:
        exchanges += len(block.indexes)
        if block.kept is not None:
            kept += len(block.indexes)
            yield block
    mode = f"exchange.log = {run.experiment.exchange.log}"
    if exchanges and not kept:
        raise LogError(f"the log keeps no predictions ({mode}); `entangled log summary` needs none")
    if kept < exchanges:
        note(f"only {kept} of {exchanges} exchanges are looked at: the others' predictions are not kept ({mode})")


def exchange_at(run: Run, position: Position, note: Note = ignore) -> Exchange:
    """The exchange at a position.

    Raises:
        LogError: the log has none there.
    """
    layout = run.layout
    if not (0 <= position.epoch < layout.epochs and 0 <= position.step < layout.steps_per_epoch):
        expected = f"epochs 0 … {layout.epochs - 1}, steps 0 … {layout.steps_per_epoch - 1}"
        raise LogError("the run has no such exchange", expected=expected, got=str(position))
    index = layout.index(position)
    for exchange in exchanges(run, note, [position.epoch], after=index - 1):
        if exchange.index == index:
            return exchange
    raise LogError(f"the log has no exchange at {position}{'' if run.summary else ': the run is not finished'}")


def last(run: Run, count: int, note: Note = ignore) -> list[Exchange]:
    """The last `count` exchanges; reads no more epochs than it must."""
    found: deque[Exchange] = deque()
    for epoch in sorted({epoch for epoch, _ in partitions(run.folder)}, reverse=True):
        wanted = deque(exchanges(run, note, [epoch]), maxlen=count - len(found))
        found.extendleft(reversed(wanted))
        if len(found) >= count:
            break
    return list(found)


def accuracies(run: Run, note: Note = ignore) -> dict[str, dict[int, float]]:
    """Each peer's training accuracy by epoch, as far as it is told in `peers/NAME/metrics.jsonl`."""
    found: dict[str, dict[int, float]] = {}
    for peer in run.peers:
        path = run.folder / "peers" / peer / "metrics.jsonl"
        found[peer] = {}
        try:
            for line in path.read_text("utf-8").splitlines():
                values = json.loads(line)
                found[peer][int(values["epoch"])] = float(values["accuracy"])
        except FileNotFoundError:
            note(f"{path} is missing: the accuracy of peer {peer} is not known here")
        except (OSError, ValueError, KeyError, TypeError):
            note(f"{path} can be read only in part: its writer is at work, or was killed")
    return found


def follow(run: Run, after: int, pause: Callable[[], None]) -> Iterator[Exchange]:
    """The exchanges behind index `after`, as they come, until the run is finished.

    Args:
        run: as opened.
        after: -1 for all.
        pause: is called when there is nothing new; waits a moment.
    """
    while True:
        over = finished(run.folder)  # asked before reading: what was written until then is read
        epoch = max(after + 1, 0) // run.layout.steps_per_epoch
        for exchange in exchanges(run, epochs=range(epoch, run.layout.epochs), after=after):
            after = exchange.index
            yield exchange
        if over:
            return
        pause()


def completed(run: Run, epoch: int, path: Path, note: Note = ignore) -> Iterator[pa.RecordBatch]:
    """A partition's rows in `SCHEMA`, also those columns that are not stored but computed; errors as of `blocks`."""
    for members, rows in _exchanges(path, read_batches(path, note)):
        if not any(rows.column(name).null_count for name in DERIVED):
            yield rows
            continue
        found = [*_whole(run, epoch, path, members, rows)]
        digests = [prediction_digest(own) for block in found for each in block.predictions for own in each]
        statistics = np.concatenate([block.statistics.reshape(-1, len(DERIVED) - 1) for block in found])
        computed = dict(zip(DERIVED, [digests, *statistics.T], strict=True))
        yield pa.RecordBatch.from_arrays(
            [pa.array(computed[f.name], f.type) if f.name in computed else rows.column(f.name) for f in SCHEMA],
            schema=SCHEMA,
        )


def _blocks(run: Run, epoch: int, path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
    for members, rows in _exchanges(path, batches):
        yield from _whole(run, epoch, path, members, rows)


def _exchanges(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[tuple[str, ...], pa.RecordBatch]]:
    """The rows of whole exchanges, many at a time, with the members that they name."""
    rest = None
    for batch in batches:
        rows = batch if rest is None else pa.concat_batches([rest, batch])
        rest = None
        for members, same in _by_members(rows):
            if rest is not None:  # more rows follow, of an exchange among others
                raise _incomplete(path, rest)
            whole = same.num_rows - same.num_rows % len(members)
            rest = same.slice(whole) if whole < same.num_rows else None
            if whole:
                yield members, same.slice(0, whole)
    if rest is not None:
        raise _incomplete(path, rest)


def _by_members(rows: pa.RecordBatch) -> Iterator[tuple[tuple[str, ...], pa.RecordBatch]]:
    """Successive rows that name the same members."""
    column = rows.column("members")
    lists = pa.ListArray.from_arrays(column.offsets, column.values)
    names = call_function("binary_join", [lists, pa.scalar(",")]).dictionary_encode()
    places = names.indices.to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), rows.num_rows]
    for begin, end in pairwise(cuts):
        if end > begin:
            yield tuple(names.dictionary[int(places[begin])].as_py().split(",")), rows.slice(begin, end - begin)


def _whole(run: Run, epoch: int, path: Path, members: tuple[str, ...], batch: pa.RecordBatch) -> Iterator[Block]:
    """The rows of whole exchanges among `members` as blocks, one for each size of batch in it."""
    if members != tuple(peer for peer in run.peers if peer in members):
        raise _not_whole(path, f"members {', '.join(members)}")
    peers = len(members)
    shape = batch.num_rows // peers, peers
    names = batch.column("peer").to_numpy(zero_copy_only=False).reshape(shape)
    steps, indexes, rows, classes = (_numbers(batch, name, shape) for name in ("step", "index", "rows", "classes"))
    strange = (names != np.array(members, dtype=object)).any(axis=1)
    if strange.any():
        raise _not_whole(path, f"peers {', '.join(names[strange][0])}")
    if (indexes != indexes[:, :1]).any() or (steps != steps[:, :1]).any() or (rows != rows[:, :1]).any():
        raise _not_whole(path, "rows of several positions in one")
    if (classes != run.classes).any():
        raise LogError(f"{path} is not of this run", expected=f"{run.classes} classes", got=f"{classes.max()} classes")
    ids, id_offsets = _list(batch, "sample_ids")
    values, value_offsets = _list(batch, "prediction")
    lengths = np.diff(value_offsets).reshape(shape)
    if (np.diff(id_offsets) != rows.reshape(-1)).any() or ((lengths != rows * classes) & (lengths != 0)).any():
        raise _not_whole(path, "lists that are not as long as they say")
    weights, received, waits, sizes = (
        _numbers(batch, name, shape) for name in ("weight", "received_at", "wait_us", "bytes")
    )
    kept = lengths > 0
    if (kept != kept[:, :1]).any():
        raise _not_whole(path, "an exchange of which some predictions are kept and others not")
    stored = _stored(batch, shape)
    if stored is None and not kept.all():
        raise _not_whole(path, "an exchange without predictions, digests and statistics")
    changes = (np.diff(rows[:, 0]) != 0) | (kept[1:, 0] != kept[:-1, 0])
    cuts = [0, *(np.flatnonzero(changes) + 1).tolist(), shape[0]]
    for begin, end in pairwise(cuts):
        first, stop, n = begin * peers, end * peers, int(rows[begin, 0])
        sample_ids = ids[id_offsets[first] : id_offsets[stop]].reshape(end - begin, peers, n)
        if (sample_ids != sample_ids[:, :1]).any():
            raise _not_whole(path, "predictions for different samples")
        yield Block(
            epoch,
            tuple(run.peers.index(name) for name in members),
            steps[begin:end, 0],
            indexes[begin:end, 0],
            weights[begin:end, 0].astype(np.float32),
            sample_ids[:, 0],
            _predictions(values[value_offsets[first] : value_offsets[stop]], (end - begin, peers, n, run.classes)),
            None if stored is None else stored[begin:end],
            run.experiment.combination(members),
            received[begin:end],
            waits[begin:end],
            sizes[begin:end],
        )


def _stored(batch: pa.RecordBatch, shape: tuple[int, int]) -> Stored | None:
    """What is stored of the predictions beside them, if all of it is there."""
    columns = [batch.column(name) for name in DERIVED]
    if any(column.null_count for column in columns):
        return None
    digests, *statistics = (column.to_numpy(zero_copy_only=False) for column in columns)
    return Stored(digests.reshape(shape), np.stack(statistics, axis=1).reshape(*shape, -1))


def _predictions(values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    return values.reshape(shape) if values.size else None


def _numbers(batch: pa.RecordBatch, name: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values = column.to_numpy(zero_copy_only=False).reshape(shape)
    return values if values.dtype == np.float32 else values.astype(np.int64)


def _list(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The values of a list column behind one another, and where each row's begin (and the last one's end)."""
    column = batch.column(name)
    return column.values.to_numpy(), column.offsets.to_numpy().astype(np.int64)


def _incomplete(path: Path, rows: pa.RecordBatch) -> LogError:
    return _not_whole(path, f"one of which only {', '.join(rows.column('peer').to_pylist())} have a row")


def _not_whole(path: Path, got: str) -> LogError:
    return LogError(f"{path} does not hold whole exchanges; `entangled log verify` names the row", got=got)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LogError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise LogError(f"{path} is no JSON object")
    return value
