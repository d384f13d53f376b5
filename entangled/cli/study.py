"""`entangled study` and `entangled compare`: several runs side by side."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entangled.cli.tables import show, show_json
from entangled.errors import EntangledError

if TYPE_CHECKING:
    from entangled.comparison import Setting
    from entangled.experiment import Experiment

METRICS = ("test_accuracy", "test_loss", "agreement")
Metric = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A final metric of summary.json; again for more [default: test_accuracy]."),
]


def study(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment's name, or a TOML file.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE,…; again for more keys, all combinations are run.", metavar="KEY=A,B"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from the experiment's own on; the same for all.")] = 1,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, for all runs.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The study's folder [default: runs/NAME-study]", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once [default: what this machine, or the cluster, holds]")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Run them on a Ray cluster, as `entangled run --on` does.", metavar="RAY")
    ] = None,
    metric: Metric = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run an experiment under every combination of some settings, with the same seeds, and compare.

    A study that was cut off goes on where it was when the same command is given again. Its folder gets study.md,
    study.json and study.png.

    Example: `entangled study private-digits --vary exchange.weight.end=0,0.5 --seeds 5`.
    """
    from entangled import experiment_file
    from entangled.launch import study as launch

    first = experiment_file.load(experiment, overrides or [])
    folder = run_dir or Path("runs") / f"{first.name}-study"
    cells = launch.plan(experiment, overrides or [], [launch.axis(text) for text in vary or []], seeds, folder)
    failure: EntangledError | None = None
    try:
        with _cluster(on, first) as room:
            launch.perform(cells, jobs or room or launch.jobs(first), lambda line: typer.echo(line, err=True), on)
    except EntangledError as error:
        failure = error
    runs = [(cell.label, cell.seed, cell.folder) for cell in cells if cell.finished]
    if runs:
        report(launch.settings(runs), metric or ["test_accuracy"], as_json, folder)
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _cluster(on: str | None, experiment: Experiment) -> Generator[int | None]:
    """Hold a cluster for all runs, where they are to run on one; how many of them it holds at once."""
    if on is None:
        yield None
        return
    from entangled.launch import ray_cluster

    ray = ray_cluster.connect(on, experiment)
    if on == "ray":  # also where it was begun just now: every run takes part in this one
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield ray_cluster.runs_at_once(ray, experiment)
    finally:
        ray.shutdown()


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Finished runs' folders.")],
    metric: Metric = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Finished runs side by side; those that differ in nothing but the seed are put together, with a 95 % interval.

    The difference is from the first run's setting, seed by seed. Example: `entangled compare runs/a runs/b`.
    """
    from entangled import experiment_file
    from entangled.launch import study as launch

    for folder in folders:
        if not (folder / "summary.json").exists():
            raise EntangledError(f"{folder} is no finished run: it has no summary.json")
    experiments = [experiment_file.load(str(folder / "experiment.toml")) for folder in folders]
    labels = launch.differing(experiments)
    seeds = [e.seed for e in experiments]
    if len(set(zip(labels, seeds, strict=True))) < len(folders):
        labels = [f"{label} {folder}".strip() for label, folder in zip(labels, folders, strict=True)]
    named = [label or experiments[0].name for label in labels]
    report(launch.settings(list(zip(named, seeds, folders, strict=True))), metric or list(METRICS), as_json, None)


def report(settings: Sequence[Setting], metrics: Sequence[str], as_json: bool, folder: Path | None) -> None:
    """Print the table, and write it to the study's folder."""
    from entangled.comparison import rows

    table = [row for metric in metrics for row in rows(settings, metric)]
    if not table:
        raise EntangledError("no run has such a final metric", expected="e.g. test_accuracy", got=", ".join(metrics))
    if folder is not None:
        from entangled import atomic
        from entangled.log import pictures

        columns = _columns(table)
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(map(str, cells)) for cells in zip(*columns.values(), strict=True)]
        atomic.write(folder / "study.md", lambda f: f.write_text("".join(f"| {x} |\n" for x in lines), "utf-8"))
        atomic.write(folder / "study.json", lambda f: f.write_text(json.dumps(table, indent=2), "utf-8"))
        try:
            pictures.comparison(table, folder / "study.png")
        except EntangledError as error:
            typer.echo(f"note: no plot: {error}", err=True)
    if as_json:
        show_json(table)
    else:
        show(_columns(table))


def _columns(table: list[dict[str, Any]]) -> dict[str, list[object]]:
    from entangled.comparison import shown

    share = ["accuracy" in row["metric"] or row["metric"] == "agreement" for row in table]
    columns: dict[str, list[object]] = {
        "setting": [row["setting"] for row in table],
        "peer": [row["peer"] for row in table],
        "metric": [row["metric"] + (" %" if s else "") for row, s in zip(table, share, strict=True)],
        "mean ± 95 %": [shown(r["mean"], r["reach"], share=s) for r, s in zip(table, share, strict=True)],
        "difference": [
            shown(r["difference_mean"], r["difference_reach"], share=s, sign=True)
            for r, s in zip(table, share, strict=True)
        ],
        "seeds": [len(row["seeds"]) for row in table],
        "runs": [row["runs"] for row in table],
    }
    return columns
