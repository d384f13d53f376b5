"""`python -m coordinator`, which is `entangled coordinator`."""

from entangled import allocator, grpc_settings

grpc_settings.apply()
allocator.keep_freed()

import contextlib  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from entangled import atomic, experiment_file, process  # noqa: E402

SWITCH_SECONDS = 0.00001
"""How long the event loop waits for the interpreter that the recorder has; Python's own 5 ms are thirty exchanges."""

MORE_OBJECTS = 50_000
"""So many more of them before Python looks for garbage among them: an exchange leaves none, and what it is made of
lives until it is on disk, which is longer than 700 objects (Python's own number) take to come."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def coordinator(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment's name, or a TOML file.")] = "mnist",
    run_dir: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/coordinator"),
    listen: Annotated[str, typer.Option(help="host:port, or unix:PATH.")] = "127.0.0.1:50051",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. epochs=5 or exchange.weight.end=0.2.")
    ] = None,
    certs: Annotated[
        Path | None,
        typer.Option(
            help="Folder with this coordinator's certificate: TLS, and only callers of the same authority.",
            envvar="ENTANGLED_CERTS",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="The coordinator's file of `entangled tokens init`: callers show a token."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine with neither: whoever reaches it gets in.")
    ] = False,
) -> None:
    """Coordinate one run: hand out sample orders, check and answer predictions, keep the log.

    Ends when every peer is done, with the run's summary.json written.

        entangled coordinator mnist --listen 0.0.0.0:50051 --certs certs/coordinator --run-dir runs/x
    """
    process.main(
        lambda: _serve(experiment, run_dir, listen, overrides or [], certs, tokens, insecure), "entangled coordinator"
    )


def _serve(
    name: str,
    run_dir: Path,
    listen: str,
    overrides: list[str],
    certs: Path | None,
    tokens: Path | None,
    insecure: bool,
) -> None:
    from coordinator import doors
    from coordinator.server import serve

    configure_process()
    atomic.private_folder(run_dir)
    process.log_to(run_dir / "coordinator.log")
    settings = experiment_file.load(name, overrides)
    lock = doors.load(certs, tokens)
    doors.check_listen(listen, lock, insecure=insecure)
    serve(settings, listen, run_dir, lock)


def configure_process() -> None:
    """What is set for a process that does nothing but coordinate."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(MORE_OBJECTS)
    # Never push a peer aside that has woken this process: where cores are few, it has its next batch to prepare.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a container's rules may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    app(prog_name="entangled coordinator")
