"""`entangled log …`: look into a run's exchange log. No command changes a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from entangled.cli.tables import decimals, noter, percent, show, show_json, span

app = typer.Typer(
    help="Look into a run's log of exchanged predictions, and prove it. No command changes the run.",
    no_args_is_help=True,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def summary(folder: RunFolder, as_json: Json = False) -> None:
    """Per epoch and peer: exchanges, λ, agreement, KL to the others' soft target both ways, entropy, waits, bytes.

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
            "wait ms": [f"{line.wait_ms_mean:.2f}" for line in lines],
            "p95 ms": [f"{line.wait_ms_p95:.2f}" for line in lines],
            "bytes": [line.bytes for line in lines],
        }
    )


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
