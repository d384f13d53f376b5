"""`python -m peer`, which is `entangled peer`."""

from entangled import grpc_settings

grpc_settings.apply()

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
    name: Annotated[str, typer.Argument(help="This peer's name in the experiment, e.g. cnn.", envvar="ENTANGLED_PEER")],
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
    """Train one peer of a run. The experiment comes from the coordinator.

    A peer that was stopped or killed goes on where it was when it is started again with the same command; the others
    wait for it.

    entangled peer cnn --coordinator host:50051 --certs certs/cnn --run-dir runs/x
    """
    process.main(
        lambda: _train(name, coordinator, run_dir, connect_seconds, device, certs, token_file, private, view),
        "entangled peer",
    )


def _train(
    name: str,
    coordinator: str,
    run_dir: Path,
    connect_seconds: float,
    device: str | None,
    certs: Path | None,
    token_file: Path | None,
    private: str | None,
    view: str | None,
) -> None:
    from entangled.participation.joining import join

    folder = run_dir / "peers" / name
    atomic.private_folder(run_dir)
    process.log_to(folder / "peer.log")
    process.end_at_interrupt()  # nothing is lost by that, and the others wait for this peer to come back
    if (run_dir / "summary.json").exists():
        log.info("%s is finished", run_dir)
        return
    sys.path.insert(0, os.getcwd())  # the user's own `module:function`
    try:
        from peer import backends, trainer

        def data(experiment: Experiment) -> str | None:
            """This peer's own, or the experiment's; but it may come from Keras, which must know its backend by then."""
            backends.select(experiment, name, device)
            return view

        with join(
            coordinator, name, data, connect_seconds=connect_seconds, certs=certs, token_file=token_file
        ) as joined:
            log.info("peer %s trains model %s for %s", name, joined.experiment.peers[name].model, coordinator)
            backends.configure(joined.experiment, name, device)
            lessons = _lessons(joined, private) if joined.experiment.private or private else None
            samples = joined.data if isinstance(joined.data, Unlabelled) else joined.dataset
            learner = backends.learner(joined.experiment, name, samples.x.shape[1:], samples.classes)
            trainer.train(joined, learner, samples, folder, private=lessons)
            log.info("peer %s is done", name)
    except EntangledError:
        raise
    except Exception as error:
        log.exception("peer %s cannot go on", name)
        process.leave(EntangledError(process.one_line(error)))


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
