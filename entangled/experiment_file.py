"""Experiment files: finding, reading, overriding, writing. The models are in `experiment`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, cast

import tomli_w

from entangled import experiment
from entangled.errors import ExperimentError
from entangled.experiment import Experiment

PLACEMENT = "placement.toml"
"""In a run's folder: where its roles run on a cluster. May be changed before the run goes on."""


def shipped() -> dict[str, str]:
    """The shipped experiments' texts by name."""
    files = resources.files("entangled.experiments").iterdir()
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in files if f.name.endswith(".toml")}


def load(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        name: a shipped experiment's name, or a path to a TOML file.
        overrides: `key.path=value`, the value in TOML, or else taken as a string.

    Raises:
        ExperimentError: no such experiment, or something in it is wrong.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise ExperimentError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ExperimentError(f"{path} is not TOML: {error}") from None
    else:
        known = shipped()
        if name not in known:
            raise ExperimentError(f"no experiment `{name}`: give a .toml file, or one of: {', '.join(sorted(known))}")
        text = known[name]
    return loads(text, where=name, overrides=overrides)


def load_run(folder: Path) -> Experiment:
    """The experiment of the run in `folder`, with where its roles run on a cluster; raises as `load` does."""
    try:
        text = (folder / "experiment.toml").read_text("utf-8")
    except OSError as error:
        raise ExperimentError(f"cannot read {folder / 'experiment.toml'}: {error.strerror}") from None
    placement = folder / PLACEMENT
    return loads(text + (placement.read_text("utf-8") if placement.exists() else ""), where=str(folder))


def loads(text: str, where: str, overrides: Iterable[str] = ()) -> Experiment:
    """Parse an experiment's text, after `overrides`, and raise ExperimentError as `load` does."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{where} is not TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return experiment.parse(values, where)


def dumps(value: Experiment) -> str:
    """The experiment as TOML with every default written out; `loads` gives back an equal one, but for placements."""
    return tomli_w.dumps(value.model_dump(mode="json", exclude_none=True))


def dumps_placement(value: Experiment) -> str:
    """Where the experiment's roles run on a cluster, as TOML: the `ray` table that `dumps` leaves out."""
    placements = {name: p.model_dump(mode="json", exclude_defaults=True) for name, p in value.ray.items()}
    return tomli_w.dumps({"ray": placements} if placements else {})


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ExperimentError("cannot understand --set", expected="KEY=VALUE, e.g. epochs=5", got=override)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        inner: Any = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ExperimentError(f"--set {override}: `{table}` is a value, not a table")
        values = cast("dict[str, Any]", inner)
    values[last] = value
