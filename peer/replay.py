"""Re-train one peer alone from a run's log: `python -m peer.replay`, which is `entangled replay`.

The log stands in for everybody else: it holds the others' predictions, exactly what the soft targets were made from.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from entangled import atomic, datasets, experiment_file, membership, private_data, process, views
from entangled.alignment import Fingerprint, Position, SampleIds, batch_digest, sample_order
from entangled.datasets import Dataset, Unlabelled
from entangled.distribution import STATISTICS, Probabilities, statistics, transmitted
from entangled.errors import EntangledError, ExperimentError, LogError
from entangled.exchange_log import Row, from_batch, genesis, partitions, read_batches
from entangled.experiment import Experiment
from entangled.log.reader import Run, open_run
from entangled.log_writer import Writer
from entangled.participation.peer import Peer
from entangled.participation.seam import Exchange, SoftTarget
from entangled.schedule import weight_at
from peer.learner import Learner
from peer.private import Lessons

app = typer.Typer(add_completion=False, rich_markup_mode=None)
FLUSH_EXCHANGES = 256
Measured = npt.NDArray[np.float32]


class LogExchange(Exchange):
    """`seam.Exchange` over a run's log, which also writes the log of the replay.

    Args:
        run: the run to replay, as opened.
        peer: the name in it of the one that is trained again.
        experiment: the run's, or with another λ or KL direction, or other settings of that peer.
        folder: of the replay, which becomes a run of its own.
        exchanged: is told how many exchanges are done, after each.
    """

    def __init__(
        self, run: Run, peer: str, experiment: Experiment, folder: Path, exchanged: Callable[[int], None]
    ) -> None:
        self.done = self.compared = 0
        """Exchanges, and those of them in which this peer took part."""
        self.largest_difference = 0.0
        """Between a prediction and the logged one."""
        self.first_difference: Position | None = None
        self.values: dict[str, float] = {}
        self._run, self._peer, self._experiment = run, peer, experiment
        self._exchanged = exchanged
        toml = experiment_file.dumps(experiment)
        self._writer = Writer(folder, genesis(toml))
        self._rows = _exchanges(run)
        self._agreeing, self._samples = dict.fromkeys(run.peers, 0.0), dict.fromkeys(run.peers, 0)
        self._in_flight: dict[Position, tuple[SampleIds, Probabilities]] = {}

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        got = fingerprint.contents_digest.hex()
        if fingerprint.samples != self._run.samples or got != self._run.contents_digest:
            raise LogError(
                f"{self._experiment.exchange.data} is not the data that the run was made with",
                expected=f"{self._run.samples} samples, contents {self._run.contents_digest}",
                got=f"{fingerprint.samples} samples, contents {got}",
            )
        return 0

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`: as was agreed in the run."""
        return np.load(self._run.folder / views.FILE)

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        ids, exchange = np.arange(self._run.samples, dtype=np.int64), self._experiment.exchange
        return sample_order(ids, exchange.shuffle_buffer, self._experiment.seed, epoch)

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """See `seam.Exchange.lookahead`."""
        return self._run.lookahead

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        self._in_flight[position] = sample_ids, transmitted(prediction, self._experiment.exchange.encoding)

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        sample_ids, prediction = self._in_flight.pop(position)
        rows = next(self._rows, None)
        if rows is None:
            raise LogError(f"the log ends before {position}: replay --until {position.epoch}")
        digest, members = batch_digest(position, sample_ids), rows[0].members
        if rows[0].digest != digest or tuple(row.peer for row in rows) != members:
            raise LogError(
                f"the log does not hold {position} here; see `entangled log verify {self._run.folder}`",
                expected=f"batch digest {digest.hex()}",
                got=f"{rows[0].position}, batch digest {rows[0].digest.hex()}",
            )
        predictions = _kept(self._run, rows)
        combination = self._experiment.combination(members)
        scheduled = float(np.float32(weight_at(self._experiment.exchange.weight, position, self._run.layout)))
        target = SoftTarget(
            membership.soft_target(self._peer, members, predictions, combination),
            membership.weight(self._peer, members, scheduled),
        )
        if self._peer in members:
            mine = members.index(self._peer)
            self._compare(position, prediction, predictions[mine])
            predictions[mine] = prediction
        measured = statistics(np.stack(predictions), combination)
        self._write(rows, scheduled, predictions)
        self._count(position, members, len(sample_ids), measured)
        self.done += 1
        self._exchanged(self.done)
        return target

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        self._writer.flush()

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        self.values = values
        self._writer.finish_epoch()

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        self._writer.close()

    def summary(self, seconds: float, weight: float) -> dict[str, object]:
        """What becomes the replay's `summary.json`: the others' figures are those of the run."""
        known: dict[str, Any] = (self._run.summary or {}).get("peers", {})
        peers: dict[str, dict[str, Any]] = {}
        for name in self._run.peers:
            agreement = self._agreeing[name] / self._samples[name] if self._samples[name] else None
            peers[name] = {**known.get(name, {}), "agreement": agreement}
        peers[self._peer] |= self.values
        return {
            "experiment": self._experiment.name,
            "peers": peers,
            "exchanges": self.done,
            "wall_seconds": seconds,
            "final_weight": weight,
            "chain": self._writer.chain.hex(),
        }

    def _count(self, position: Position, members: tuple[str, ...], samples: int, measured: Measured) -> None:
        """Sum up the last epoch's agreement, of those who were not alone."""
        if position.step == 0:
            self._agreeing, self._samples = dict.fromkeys(self._run.peers, 0.0), dict.fromkeys(self._run.peers, 0)
        if len(members) > 1:
            for name, agreement in zip(members, measured[:, STATISTICS.index("agreement")].tolist(), strict=True):
                self._agreeing[name] += agreement * samples
                self._samples[name] += samples

    def _compare(self, position: Position, prediction: Probabilities, logged: Probabilities) -> None:
        self.compared += 1
        if not np.array_equal(prediction, logged):
            self.first_difference = self.first_difference or position
            self.largest_difference = max(self.largest_difference, float(np.abs(prediction - logged).max()))

    def _write(self, rows: list[Row], scheduled: float, predictions: list[Probabilities]) -> None:
        for row, prediction in zip(rows, predictions, strict=True):
            weight = membership.weight(row.peer, row.members, scheduled)
            self._writer.append(row._replace(weight=weight, prediction=prediction))
        if self.done % FLUSH_EXCHANGES == 0:
            self._writer.flush()


def _exchanges(run: Run) -> Iterator[list[Row]]:
    rows: list[Row] = []
    for epoch, path in partitions(run.folder):
        for row in (row for batch in read_batches(path) for row, _ in from_batch(batch, epoch)):
            rows.append(row)
            if len(rows) == len(row.members):
                yield rows
                rows = []


def _kept(run: Run, rows: list[Row]) -> list[Probabilities]:
    """The predictions of an exchange.

    Raises:
        LogError: they are not kept.
    """
    kept = [row.prediction for row in rows if row.prediction is not None]
    if len(kept) < len(rows):
        raise LogError(
            f"{run.folder} cannot be replayed: the predictions of {rows[0].position} are not kept "
            f"(exchange.log = {run.experiment.exchange.log}); a run with exchange.log = full can"
        )
    return kept


def counterfactual(run: Run, peer: str, overrides: list[str]) -> Experiment:
    """The run's experiment under `overrides` that leave what the others predicted valid.

    Raises:
        ExperimentError: an override changes more than λ, the KL direction, or this peer's own settings.
    """
    changed = experiment_file.loads(run.toml, str(run.folder / "experiment.toml"), overrides)

    def others(experiment: Experiment) -> dict[str, Any]:
        values = experiment.model_dump(mode="json")
        for key in ("weight", "direction", "combine", "temperature", "top_k"):
            del values["exchange"][key]
        del values["peers"][peer], values["checkpoint"]
        return values

    if others(changed) != others(run.experiment):
        raise ExperimentError(
            "a replay can change only exchange.weight, direction, combine, temperature and top_k, and peers."
            + peer
            + ": "
            "the others' predictions are for the batches of the run as it was"
        )
    return changed


@app.command()
def replay(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")],
    peer: Annotated[str, typer.Argument(help="The peer to train again.")],
    until: Annotated[int | None, typer.Option(help="End after so many epochs.", min=1)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="What if: exchange.weight.end=0.2, exchange.direction=other_self, peers.PEER.…"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the replay [default: runs/NAME-replay-PEER-DATE-TIME]")
    ] = None,
    private: Annotated[
        str | None, typer.Option(help="The peer's private data or view, where it was given on its own side.")
    ] = None,
) -> None:
    """Train one peer of a run again, alone, from the log of what the others predicted.

    Unchanged, it must end with the same weights to the bit, and says whether it did. With --set it is a counterfactual:
    the same run under another λ or KL direction, with the others' predictions as logged. Either way the replay is a run
    of its own, which the other commands accept.

    entangled replay runs/x cnn --set exchange.weight.end=0.2
    """
    process.main(lambda: _replay(run_dir, peer, until, overrides or [], output, private))


def _replay(
    run_dir: Path, peer: str, until: int | None, overrides: list[str], output: Path | None, private: str | None
) -> None:
    run = open_run(run_dir)
    if peer not in run.peers:
        raise LogError("the run has no such peer", expected=" or ".join(run.peers), got=peer)
    experiment = counterfactual(run, peer, overrides)
    epochs = min(until or experiment.epochs, experiment.epochs)
    total = epochs * run.layout.steps_per_epoch
    if run.experiment.exchange.log != "full":
        for rows in islice(_exchanges(run), total):
            _kept(run, rows)
    now = datetime.now()
    folder = output or Path("runs") / f"{experiment.name}-replay-{peer}-{now:%Y%m%d-%H%M%S}"
    if folder.exists() and any(folder.iterdir()):
        raise EntangledError(f"{folder} is not empty; choose another --run-dir")
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads((run.folder / "run.json").read_text("utf-8"))
    description |= {"run_id": uuid.uuid4().hex, "replay_of": description["run_id"], "peer": peer, "set": overrides}
    atomic.write_json(folder / "run.json", description)
    (folder / "experiment.toml").write_text(experiment_file.dumps(experiment), "utf-8")

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(f"replaying {peer}", total=total)
        exchange = LogExchange(run, peer, experiment, folder, lambda done: progress.update(task, completed=done))
        trained = _train(run, peer, experiment, exchange, folder, until, description["run_id"], private)
    seconds = (datetime.now() - now).total_seconds()
    if epochs == experiment.epochs:
        last = run.layout.position(total - 1)
        weight = float(np.float32(weight_at(experiment.exchange.weight, last, run.layout)))
        atomic.write_json(folder / "summary.json", exchange.summary(seconds, weight))
    for line in _verdict(run, peer, experiment, exchange, trained, epochs):
        typer.echo(line)
    typer.echo(f"run folder: {folder}")


def _train(
    run: Run,
    peer: str,
    experiment: Experiment,
    exchange: LogExchange,
    folder: Path,
    until: int | None,
    run_id: str,
    private: str | None,
) -> Learner:
    sys.path.insert(0, os.getcwd())  # the user's own `module:function`
    from peer import backends, trainer

    backends.configure(experiment, peer)
    initial = run.folder / "peers" / peer / "initial.weights.h5"
    same_model = experiment.peers[peer].model == run.experiment.peers[peer].model
    data, own = _samples(run, experiment, peer, private)
    learner = backends.learner(experiment, peer, data.x.shape[1:], data.classes)
    weights = initial if same_model and initial.exists() else None
    joined = Peer(exchange, experiment, peer, run_id, data, until)
    trainer.train(joined, learner, data, folder / "peers" / peer, weights, own)
    return learner


def _samples(
    run: Run, experiment: Experiment, peer: str, own: str | None
) -> tuple[Dataset | Unlabelled, Lessons | None]:
    """What predictions were exchanged on, and what the peer learned from beside; the baselines are the run's."""
    if experiment.vertical:
        return views.load(experiment, peer, own).only(np.load(run.folder / views.FILE)), None
    if not experiment.private:
        return datasets.load(experiment.exchange.data, experiment.exchange.classes), None
    from peer.private import lessons

    public = private_data.public(experiment)
    return public, lessons(experiment, peer, public, own, None)


def _verdict(
    run: Run, peer: str, experiment: Experiment, exchange: LogExchange, trained: Learner, epochs: int
) -> Iterator[str]:
    values = exchange.values
    shown = [("training loss", "train_loss", ".4f"), ("training accuracy", "train_accuracy", ".2%")]
    shown += [("test accuracy", "test_accuracy", ".2%"), ("test loss", "test_loss", ".4f")]
    yield f"{peer}: " + ", ".join(f"{what} {values[name]:{form}}" for what, name, form in shown if name in values)
    if experiment != run.experiment:
        return
    if exchange.first_difference is None:
        others = f"; it took no part in {exchange.done - exchange.compared} exchanges"
        yield (
            f"predictions: all {exchange.compared} equal the logged ones to the bit"
            f"{others if exchange.compared < exchange.done else ''}"
        )
    else:
        yield (
            f"predictions: the first that differs from the log is at {exchange.first_difference}; "
            f"the largest difference is {exchange.largest_difference:.3g}: another machine, or another version?"
        )
    final = run.folder / "peers" / peer / "final.keras"
    if epochs < experiment.epochs or not final.exists():
        yield f"final weights: not compared, {'--until ended before them' if final.exists() else f'no {final}'}"
        return
    import keras

    before: Any = keras.models.load_model(final)
    pairs = zip(before.get_weights(), trained.weights(), strict=True)
    largest = max(float(np.abs(a - b).max(initial=0.0)) if not np.array_equal(a, b) else 0.0 for a, b in pairs)
    verdict = "equal to the bit" if largest == 0 else f"the largest difference is {largest:.3g}"
    yield f"final weights: {verdict} ({final})"


if __name__ == "__main__":
    app(prog_name="entangled replay")
