"""`entangled log …`: look into a run's exchange log. No command changes a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entangled.cli.tables import decimals, guessed, noter, percent, short, show, show_json, show_rows, span
from entangled.errors import EntangledError

if TYPE_CHECKING:
    from entangled.log.block import Exchange
    from entangled.log.diff import EpochDifference
    from entangled.log.reader import Run
    from entangled.log.reports import Report

app = typer.Typer(
    help="Look into a run's log of exchanged predictions, and prove it. No command changes the run.",
    no_args_is_help=True,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def summary(folder: RunFolder, as_json: Json = False) -> None:
    """Per epoch and peer: exchanges, λ, agreement, KL to the soft target both ways, entropy, confidence, waits, bytes.

    KL and entropy are in nats, per sample. Example: `entangled log summary runs/x`.
    """
    from entangled.log.analysis import summarise
    from entangled.log.reader import blocks, open_run

    run = open_run(folder)
    lines = list(summarise(blocks(run, noter()), run.peers))
    if as_json:
        show_json([asdict(line) for line in lines])
        return
    show(
        {
            "epoch": [line.epoch for line in lines],
            "peer": [line.peer for line in lines],
            "exchanges": [line.exchanges for line in lines],
            "λ": [span(line.weight_first, line.weight_last) for line in lines],
            "agreement": [percent(line.agreement) for line in lines],
            "KL(self‖other)": [decimals(line.kl_self_other) for line in lines],
            "KL(other‖self)": [decimals(line.kl_other_self) for line in lines],
            "entropy": [decimals(line.entropy) for line in lines],
            "confidence": [percent(line.confidence) for line in lines],
            "wait ms": [decimals(line.wait_ms_mean, 2) for line in lines],
            "p95 ms": [decimals(line.wait_ms_p95, 2) for line in lines],
            "bytes": [line.bytes for line in lines],
        }
    )


@app.command(name="show")
def show_exchange(
    folder: RunFolder,
    epoch: Annotated[int, typer.Option(help="Counted from 0.")],
    step: Annotated[int, typer.Option(help="Counted from 0, in the epoch.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes of each distribution to show.")] = 3,
    as_json: Json = False,
) -> None:
    """One exchange: every peer's prediction for each sample, its soft target, λ, and the label if it is known.

    Distributions are shown by their most probable classes; the JSON has them whole. Example: `entangled log show runs/x
    --epoch 3 --step 10`.
    """
    from entangled.alignment import Position
    from entangled.log import reports
    from entangled.log.reader import exchange_at, open_run
    from entangled.log.samples import labels

    run, note = open_run(folder), noter()
    found = exchange_at(run, Position(epoch, step), note)
    report = reports.exchange(run, found, labels(run, note))
    if as_json:
        show_json(report)
        return
    samples = report["samples"]
    typer.echo(f"{found.position} (index {found.index}), {len(samples)} samples, λ {decimals(found.weight)}")
    columns = {"sample": [s["id"] for s in samples], "label": [s["label"] for s in samples]}
    for peer in run.peers:
        columns[peer] = [_guessed(s, peer, "prediction", top) for s in samples]
        columns[f"{peer}'s soft target"] = [_guessed(s, peer, "soft_target", top) for s in samples]
    show(columns)


@app.command()
def sample(
    folder: RunFolder,
    sample_id: Annotated[int, typer.Option("--id", help="The sample's id.")],
    as_json: Json = False,
) -> None:
    """One sample through the epochs: what each peer took it for and with what probability, and its label if known.

    Example: `entangled log sample runs/x --id 4711`.
    """
    from entangled.log import reports
    from entangled.log.reader import open_run
    from entangled.log.samples import labels

    run, note = open_run(folder), noter()
    report = reports.sample(run, sample_id, labels(run, note), note)
    if as_json:
        show_json(report)
        return
    typer.echo(f"sample {sample_id}, label {'not known' if report['label'] is None else report['label']}")
    seen = report["exchanges"]
    peers = {peer: [_guessed(s, peer, "prediction", 1) for s in seen] for peer in run.peers}
    weights = [decimals(s["weight"]) for s in seen]
    show({"epoch": [s["epoch"] for s in seen], "step": [s["step"] for s in seen], "λ": weights, **peers})


@app.command()
def disagreements(
    folder: RunFolder,
    top: Annotated[int, typer.Option(min=1, help="How many samples.")] = 20,
    epoch: Annotated[int | None, typer.Option(help="Only this epoch, counted from 0; else the whole run.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the samples, which must be images, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """The samples on which the peers differ most, by Jensen-Shannon divergence in nats, averaged over their exchanges.

    Each peer's guesses are those of its mean prediction. Example: `entangled log disagreements runs/x --png x.png`.
    """
    from entangled.log import reports
    from entangled.log.reader import open_run
    from entangled.log.samples import labels, load

    run, note = open_run(folder), noter()
    _check_epoch(epoch, run.layout.epochs)
    report = reports.disagreements(run, top, epoch, labels(run, note), note)
    if png is not None:
        from entangled.log import pictures

        pictures.contact_sheet(report, load(run), _outside(png, folder))
        note(f"drawn to {png}")
    if as_json:
        show_json(report)
        return
    show(
        {
            "sample": [r["id"] for r in report],
            "label": [r["label"] for r in report],
            "divergence": [decimals(r["divergence"]) for r in report],
            "exchanges": [r["exchanges"] for r in report],
            **{peer: [_guessed(r, peer, "prediction", 2) for r in report] for peer in run.peers},
        }
    )


@app.command()
def plot(
    folder: RunFolder,
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The PNG file [default: ./RUN-log.png]", show_default=False)
    ] = None,
) -> None:
    """Draw λ, agreement, KL, entropy and training accuracy over the epochs, for every peer and pair of peers.

    Example: `entangled log plot runs/x`.
    """
    from entangled.log import pictures
    from entangled.log.analysis import course
    from entangled.log.reader import accuracies, blocks, open_run, with_predictions

    run, note = open_run(folder), noter()
    out = _outside(target or Path(f"{folder.resolve().name}-log.png"), folder)
    found = with_predictions(run, blocks(run, note), note)
    pictures.course(run, course(found, len(run.peers), run.layout), accuracies(run, note), out)
    typer.echo(f"drawn to {out}")


@app.command()
def tail(
    folder: RunFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is finished, or Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", min=1, help="How many exchanges to begin with.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")] = False,
) -> None:
    """The last exchanges, a line each; with --follow live, while the run goes on.

    KL is KL(self‖other) to the soft target, in nats. Example: `entangled log tail runs/x --follow`.
    """
    import time

    from entangled.log import reader

    def pause() -> None:
        time.sleep(0.2)

    try:
        while follow and folder.exists() and not reader.started(folder):
            pause()
        run = reader.open_run(folder)
        index = -1
        for exchange in reader.last(run, lines, reader.ignore if follow else noter()):
            _print_line(run, exchange, as_json)
            index = exchange.index
        if follow:
            for exchange in reader.follow(run, index, pause):
                _print_line(run, exchange, as_json)
    except KeyboardInterrupt:
        return


@app.command()
def query(
    folder: RunFolder,
    sql: Annotated[str, typer.Argument(help="One select over the view `exchanges`.")],
    as_json: Json = False,
) -> None:
    """SQL over the log: the view `exchanges` has a row per prediction. Needs DuckDB.

    Columns: epoch, step, index, peer, members, weight, sample_ids, digest, rows, classes, prediction (empty where it is
    not kept), prediction_digest, entropy, confidence, agreement, kl_self_other, kl_other_self, staleness, received_at,
    wait_us, bytes, chain. Digest, entropy … kl_other_self are computed where the log does not store them.

    Example: `entangled log query runs/x "select peer, avg(bytes) from exchanges group by peer"`.
    """
    from entangled.log.query import query as answer
    from entangled.log.reader import open_run

    names, rows = answer(open_run(folder), sql, noter())
    if as_json:
        show_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    show_rows(names, [[short(value) for value in row] for row in rows])


@app.command()
def export(
    folder: RunFolder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A file that ends in .csv, .parquet or .jsonl.")],
    epoch: Annotated[int | None, typer.Option(help="Only this epoch, counted from 0.")] = None,
    peer: Annotated[str | None, typer.Option(help="Only this peer's predictions.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Only these columns, in this order: epoch,step,peer …", metavar="A,B,…")
    ] = None,
) -> None:
    """Write the log's rows to one file. In text, lists are JSON lists, digests hexadecimal, times ISO.

    Example: `entangled log export runs/x x.csv --peer cnn --columns epoch,step,weight,wait_us`.
    """
    from entangled.log.export import COLUMNS
    from entangled.log.export import export as write
    from entangled.log.reader import open_run

    run = open_run(folder)
    _check_epoch(epoch, run.layout.epochs)
    names = COLUMNS if columns is None else [name.strip() for name in columns.split(",")]
    rows = write(run, _outside(target, folder), noter(), epoch, peer, names)
    typer.echo(f"{rows} rows written to {target}")


@app.command()
def verify(folder: RunFolder, as_json: Json = False) -> None:
    """Prove the log: complete, in order, unchanged, aligned, on schedule. Exit 1 on the first fault, naming its place.

    Proven are: every position and peer, in order; the sample ids, against the experiment's sample order; the batch
    digests; λ, against the schedule; every row's validity; the hash chain, from experiment.toml to summary.json.
    """
    from entangled.log.reader import open_run
    from entangled.log.verify import verify as prove

    run = open_run(folder)
    verdict = prove(run, noter())
    if as_json:
        show_json(asdict(verdict))
    elif verdict.fault is None:
        state = "complete and " if verdict.finished else ""
        typer.echo(f"{folder}: {verdict.exchanges} of {verdict.of} exchanges, {state}without fault")
    else:
        typer.echo(f"fault: {verdict.fault}", err=True)
    if verdict.fault is not None:
        raise typer.Exit(1)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="One run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one's.")],
    as_json: Json = False,
) -> None:
    """Where two runs part, in predictions, sample ids or λ, and by how much. Exit 0 if equal to the bit, 1 if not.

    Example: `entangled log diff runs/x runs/y`.
    """
    from entangled.log.diff import compare
    from entangled.log.reader import exchanges, open_run

    a, b, note = open_run(first), open_run(second), noter()
    found = compare(exchanges(a, note), exchanges(b, note), a.peers, b.peers)
    if as_json:
        show_json(asdict(found))
    elif found.parting is None:
        typer.echo(f"equal: {sum(epoch.exchanges for epoch in found.epochs)} exchanges, to the bit")
    else:
        by_peer = "".join(f"; {peer} by {value:.3g}" for peer, value in found.parting.predictions.items())
        typer.echo(f"the runs part at {found.parting.position}: {', '.join(found.parting.what)}{by_peer}")
        show(
            {
                "epoch": [e.epoch for e in found.epochs],
                "exchanges": [e.exchanges for e in found.epochs],
                "different": [e.different for e in found.epochs],
                "predictions by": [_by(e) for e in found.epochs],
                "λ by": [f"{e.weight:.3g}" for e in found.epochs],
            }
        )
    if found.parting is not None:
        raise typer.Exit(1)


def _guessed(report: Report, peer: str, what: str, count: int) -> str:
    """Nothing where the peer was not there."""
    return guessed(report["peers"].get(peer, {}).get(what), count)


@app.command()
def leakage(
    folder: RunFolder,
    shadow: Annotated[
        list[Path] | None,
        typer.Option(help="A run of the same experiment with another seed, for LiRA; again for more.", metavar="RUN"),
    ] = None,
    private: Annotated[
        list[str] | None,
        typer.Option(help="PEER=DATA: private data that was given on the peer's own side.", metavar="PEER=DATA"),
    ] = None,
    as_json: Json = False,
) -> None:
    """What the logged predictions give away: can it be told which samples a peer has learned from?

    Two attacks on each peer's last predictions: a threshold on the loss, and, with --shadow, LiRA. AUC is 0.5 where
    nothing can be told. Some exchanged samples must be private ones, as if somebody had put them there to ask. Example:
    `entangled log leakage runs/a --shadow runs/b --shadow runs/c`.
    """
    from entangled.log.audit import attack
    from entangled.log.reader import open_run

    own = {peer: data for peer, _, data in (part.partition("=") for part in private or [])}
    found = attack(open_run(folder), [open_run(s) for s in shadow or []], own, noter())
    if as_json:
        show_json([asdict(line) for line in found])
        return
    show(
        {
            "peer": [line.peer for line in found],
            "attack": [line.attack for line in found],
            "members": [line.members for line in found],
            "others": [line.others for line in found],
            "AUC": [decimals(line.auc) for line in found],
            "found at 1 % false": [percent(line.true_positives) for line in found],
        }
    )


def _by(epoch: EpochDifference) -> str | None:
    if epoch.unknown:
        return "not kept"
    return None if epoch.predictions is None else f"{epoch.predictions:.3g}"


def _print_line(run: Run, exchange: Exchange, as_json: bool) -> None:
    from entangled.log import reports

    report = reports.line(run, exchange)
    if as_json:
        typer.echo(json.dumps(report))
        return
    peers = [
        f"{peer}: agreement {percent(said['agreement'])}, KL {decimals(said['kl_self_other'])}, "
        f"waited {said['wait_ms']:.1f} ms"
        for peer, said in report["peers"].items()
    ]
    typer.echo(f"{report['at'][11:23]}  {exchange.position}  λ {decimals(exchange.weight)}  " + "  ".join(peers))


def _check_epoch(epoch: int | None, epochs: int) -> None:
    if epoch is not None and not 0 <= epoch < epochs:
        raise EntangledError("the run has no such epoch", expected=f"0 … {epochs - 1}", got=str(epoch))


def _outside(target: Path, run: Path) -> Path:
    """`target`, if it does not lie in the run's folder, which no command of these changes."""
    if target.resolve().is_relative_to(run.resolve()):
        raise EntangledError(f"{target} lies in the run's folder, which is only read; choose another place")
    return target
