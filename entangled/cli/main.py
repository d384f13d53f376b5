"""`entangled`: the command line."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from entangled import __version__, grpc_settings, process
from entangled.cli import certs, doctor, log, study, tokens
from entangled.errors import EntangledError

app = typer.Typer(
    help="Entangled learning: models train side by side and exchange only their predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(log.app, name="log")
app.add_typer(certs.app, name="certs")
app.add_typer(tokens.app, name="tokens")
app.command()(study.study)
app.command()(study.compare)
app.command()(doctor.doctor)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}


def main() -> None:
    """Run the command line: 1 and one line on an error, no stack trace."""
    try:
        app()
    except (EntangledError, OSError) as error:
        said = error if isinstance(error, EntangledError) else process.one_line(error)
        typer.echo(f"error: {said}", err=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Answer --version."""
    if show:
        typer.echo(f"entangled {__version__}")
        raise typer.Exit


@app.command()
def run(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name (see `entangled experiments`), or a TOML file.")
    ] = "mnist",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE; any key of the experiment by dots: epochs=5, exchange.weight.end=0.2."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder [default: runs/NAME-DATE-TIME]", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder.", metavar="RUN")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Run it on a Ray cluster instead: `ray` for the one here, or ray://HOST:PORT.", metavar="RAY"
        ),
    ] = None,
) -> None:
    """Run an experiment on this machine: a coordinator and every peer, each in its own process.

    A process that is killed is started again and goes on where it was; the result is the same to the bit.

    Examples: `entangled run`, `entangled run smoke`, `entangled run my.toml --set epochs=5 --run-dir runs/x`.
    """
    from entangled import experiment_file

    if resume is not None:
        if overrides or run_dir:
            raise EntangledError("--resume goes on with a run as it is: give neither --set nor --run-dir with it")
        settings, folder = experiment_file.load_run(resume), resume
        if (resume / "summary.json").exists():
            typer.echo(f"{resume} is finished: there is nothing to go on with")
            return
    else:
        settings = experiment_file.load(experiment, overrides or [])
        folder = run_dir or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"
    grpc_settings.apply()
    from rich.console import Console

    from entangled.cli.progress import Progress
    from entangled.cli.result import print_result
    from entangled.launch import local, on_ray

    console = Console()
    console.print(f"{settings.name}: {', '.join(settings.peer_names)}, {settings.epochs} epochs → {folder}")
    try:
        with Progress(settings, console) as progress:
            if on is None:
                local.run(settings, folder, progress, console.print, resume=resume is not None)
            else:
                on_ray.run(settings, folder, on, progress, console.print, resume=resume is not None)
    except KeyboardInterrupt:
        typer.echo(f"stopped; to go on: entangled run --resume {folder}{f' --on {on}' if on else ''}", err=True)
        raise typer.Exit(1) from None
    print_result(console, settings, json.loads((folder / "summary.json").read_text("utf-8")))
    console.print(f"run folder: {folder}", soft_wrap=True)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def coordinator(context: typer.Context) -> None:
    """Coordinate one run: the same role that `run` starts, by hand, on any host."""
    _become("coordinator", context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def peer(context: typer.Context) -> None:
    """Train one peer of a run, on any host; the experiment comes from the coordinator."""
    _become("peer", context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def replay(context: typer.Context) -> None:
    """Train one peer of a run again, alone, from the log: to the same weights, or under another λ."""
    _become("peer.replay", context.args)


@app.command()
def experiments(
    show: Annotated[str | None, typer.Option(help="Print this experiment's file.", metavar="NAME")] = None,
) -> None:
    """List the experiments that are shipped, one line each."""
    from entangled import experiment_file

    shipped = experiment_file.shipped()
    if show is None:
        for name, text in sorted(shipped.items()):
            typer.echo(f"{name:12} {experiment_file.loads(text, name).description}")
    elif show in shipped:
        typer.echo(shipped[show].rstrip())
    else:
        raise EntangledError("no such experiment", expected=", ".join(sorted(shipped)), got=show)


def _become(role: str, arguments: list[str]) -> None:
    os.execv(sys.executable, [sys.executable, "-m", role, *arguments])
