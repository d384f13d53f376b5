"""`python -m peer.rehearsal NAME`: all that a peer does before it joins, and what it then has. For `entangled doctor`.

Reads the experiment, as TOML, from standard input; prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Annotated, Any

import typer

from entangled import datasets, experiment_file, private_data, process, views
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from peer import backends

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def rehearse(
    name: Annotated[str, typer.Argument(help="The peer's name in the experiment.")],
    device: Annotated[str | None, typer.Option(help="Instead of the experiment's.")] = None,
) -> None:
    """Take the device, load the data, build the model; print `{"device", "data", "model"}`, each `{"ok", "what"}`."""
    experiment = experiment_file.loads(sys.stdin.read(), "standard input")
    settings = experiment.peers[name]
    sys.path.insert(0, os.getcwd())
    found: dict[str, dict[str, Any]] = {}
    with contextlib.redirect_stdout(sys.stderr):  # what the user's own modules print
        found["device"] = _try(lambda: _configured(experiment, name, device))
        seen: list[tuple[tuple[int, ...], int]] = []  # the shape of one sample, and the number of classes

        def load() -> str:
            data, own = _load(experiment, name)
            seen.append((data.x.shape[1:], data.classes))
            return f"{len(data.x)} samples of {data.x.shape[1:]}, {data.classes} classes{own}"

        found["data"] = _try(load)
        if found["device"]["ok"] and seen:
            found["model"] = _try(lambda: _built(settings.model, *seen[0]))
    typer.echo(json.dumps(found))


def _load(experiment: Experiment, name: str) -> tuple[Dataset | Unlabelled, str]:
    """What predictions are exchanged on, and a word about the peer's own data, if it has any that is named."""
    settings = experiment.peers[name].private
    if experiment.vertical:
        return views.load(experiment, name).data, ""
    if settings is None:
        return datasets.load(experiment.exchange.data, experiment.exchange.classes), ""
    public = private_data.public(experiment)
    if settings.data is None:
        return public, "; its private data is not named in the experiment"
    own = private_data.private(experiment, name, public.classes)
    return public, f"; {len(own.x)} private ones"


def _try(work: Any) -> dict[str, Any]:
    try:
        return {"ok": True, "what": work()}
    except EntangledError as error:
        return {"ok": False, "what": str(error)}
    except Exception as error:  # the user's own function, or a library's
        return {"ok": False, "what": process.one_line(error)}


def _configured(experiment: Experiment, name: str, device: str | None) -> str:
    settings = experiment.peers[name]
    memory = settings.memory
    used: str = backends.configure(experiment, name, device).devices_in_use()
    on_gpu = not used.endswith("the CPU")
    limit = "" if memory is None or not on_gpu else f", {memory:g} {'of its memory' if memory <= 1 else 'MiB'}"
    return used + limit


def _built(model: str, shape: tuple[int, ...], classes: int) -> str:
    from peer.models import build

    built = build(model, shape, classes, seed=0)
    return f"{model}, {built.count_params():,} parameters"


if __name__ == "__main__":
    app(prog_name="python -m peer.rehearsal")
