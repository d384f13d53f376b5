"""`python -m peer`, which is `entangled peer`."""

from entangled import allocator, grpc_settings

grpc_settings.apply()
allocator.keep_freed()

import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402

from entangled import atomic, process  # noqa: E402
from entangled.datasets import Unlabelled  # noqa: E402
from entangled.errors import EntangledError, ExperimentError  # noqa: E402
from entangled.experiment import Experiment  # noqa: E402

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def peer(
    names: Annotated[
        list[str],
        typer.Argument(
            help="This peer's name in the experiment, e.g. cnn; several share a process, and a stream.",
            envvar="ENTANGLED_PEER",
            metavar="NAME",
        ),
    ],
    coordinator: Annotated[str, typer.Option(help="host:port, or unix:PATH.", envvar="ENTANGLED_COORDINATOR")] = (
        "127.0.0.1:50051"
    ),
    run_dir: Annotated[Path, typer.Option(help="The run's folder; this peer writes to peers/NAME in it.")] = Path(
        "runs/peer"
    ),
    connect_seconds: Annotated[float, typer.Option(help="How long to wait for the coordinator to be there.")] = 60.0,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, gpu or gpu:N of this host, instead of the experiment's.")
    ] = None,
    certs: Annotated[
        Path | None, typer.Option(help="Folder with this peer's certificate: TLS.", envvar="ENTANGLED_CERTS")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with this peer's token; or ENTANGLED_TOKEN.", envvar="ENTANGLED_TOKEN_FILE"),
    ] = None,
    private: Annotated[
        str | None,
        typer.Option(
            help="This peer's private data, npz:PATH or another data set's name; it stays here.",
            envvar="ENTANGLED_PRIVATE",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            help="This peer's features of the samples that all have, npz:PATH; they stay here.",
            envvar="ENTANGLED_VIEW",
        ),
    ] = None,
) -> None:
    """Train one peer of a run, or several in one process. The experiment comes from the coordinator.

    A peer that was stopped or killed goes on where it was when it is started again with the same command; the others
    wait for it.

    entangled peer cnn --coordinator host:50051 --certs certs/cnn --run-dir runs/x
    """
    process.main(
        lambda: _train(names, coordinator, run_dir, connect_seconds, device, certs, token_file, private, view),
        "entangled peer",
    )


def _train(
    names: list[str],
    coordinator: str,
    run_dir: Path,
    connect_seconds: float,
    device: str | None,
    certs: Path | None,
    token_file: Path | None,
    private: str | None,
    view: str | None,
) -> None:
    from entangled import credentials
    from entangled.participation.client import CoordinatorClient
    from entangled.participation.joining import join_over

    name, *others = names
    if others and (private or view):
        raise ExperimentError("--private and --view are one peer's", expected="one peer", got=f"{len(names)} peers")
    atomic.private_folder(run_dir)
    process.end_at_interrupt()  # nothing is lost by that, and the others wait for this peer to come back
    if others:
        process.log_apart({each: _folder(run_dir, each) / "peer.log" for each in names})
    else:
        process.log_to(_folder(run_dir, name) / "peer.log")
    if (run_dir / "summary.json").exists():
        log.info("%s is finished", run_dir)
        return
    sys.path.insert(0, os.getcwd())  # the user's own `module:function`
    shown = credentials.load(certs, token_file)
    try:
        from peer import backends, several

        def data(experiment: Experiment) -> str | None:
            """This peer's own, or the experiment's; but it may come from Keras, which must know its backend by then."""
            backends.select(experiment, name, device)
            return view

        def configured(experiment: Experiment) -> None:
            backends.configure(experiment, name, device, len(names))

        def work(joined: Any) -> None:
            _work(joined, private, _folder(run_dir, joined.name))

        if others:
            several.train(names, coordinator, connect_seconds, shown, configured, work)
            return
        with join_over(CoordinatorClient(coordinator, name, connect_seconds, shown), data) as joined:
            configured(joined.experiment)
            work(joined)
    except EntangledError:
        raise
    except Exception as error:
        log.exception("peer %s cannot go on", name)
        process.leave(EntangledError(process.one_line(error)))


def _work(joined: Any, private: str | None, folder: Path) -> None:
    """Train one peer, when the process is ready for its framework."""
    from peer import backends, trainer

    name = joined.name
    log.info("peer %s trains model %s", name, joined.experiment.peers[name].model)
    lessons = _lessons(joined, private) if joined.experiment.private or private else None
    samples = joined.data if isinstance(joined.data, Unlabelled) else joined.dataset
    learner = backends.learner(joined.experiment, name, samples.x.shape[1:], samples.classes)
    trainer.train(joined, learner, samples, folder, private=lessons)
    log.info("peer %s is done", name)


def _folder(run: Path, name: str) -> Path:
    return run / "peers" / name


def _lessons(joined: Any, private: str | None) -> Any:
    """This peer's private data. Why it cannot be had stays here, for that may name it: the others hear only that."""
    from peer import backends
    from peer.private import lessons

    experiment, name, public = joined.experiment, joined.name, joined.data
    try:
        if not isinstance(public, Unlabelled):
            raise ExperimentError(f"the experiment says nothing of private data: peers.{name}.private is missing")
        shape, classes = public.x.shape[1:], public.classes
        return lessons(experiment, name, public, private, lambda: backends.learner(experiment, name, shape, classes))
    except Exception:
        joined.fail("its private data cannot be used; its own log says why")
        raise


if __name__ == "__main__":
    app(prog_name="entangled peer")
