"""The samples that a log is about: labels and images, where the run's data set can be had here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator

import numpy as np
import numpy.typing as npt

from entangled import datasets, private_data, views
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError, EntangledError
from entangled.log.reader import Note, Run


def load(run: Run) -> Dataset | Unlabelled:
    """The data set that the run exchanged predictions on.

    Raises:
        DataError: it cannot be had here, or is not the one that the run was made with.
    """
    name = run.experiment.exchange.data
    try:
        with users_own():
            data = _load(run)
    except EntangledError:
        raise
    except Exception as error:  # the user's function may do what it likes
        raise DataError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from None
    found = data.fingerprint().contents_digest.hex()
    if len(data.ids) != run.samples or (run.contents_digest and found != run.contents_digest):
        raise DataError(
            f"{name} is not the data that the run was made with",
            expected=f"{run.samples} samples, contents {run.contents_digest or 'not known'}",
            got=f"{len(data.ids)} samples, contents {found}",
        )
    return data


def _load(run: Run) -> Dataset | Unlabelled:
    experiment = run.experiment
    if experiment.private:
        return private_data.public(experiment)
    if not experiment.vertical:
        return datasets.load(experiment.exchange.data, experiment.exchange.classes)
    if not experiment.exchange.data:
        raise DataError("each peer has its own features of the samples, on its own side")
    return views.read(experiment.exchange.data, experiment.exchange.classes).only(np.load(run.folder / views.FILE))


@contextlib.contextmanager
def users_own() -> Generator[None]:
    """Let the user's own `module:function` be found where the command was given, as for a peer."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def labels(run: Run, note: Note) -> npt.NDArray[np.int64] | None:
    """The samples' labels by id; None, and a note, if they cannot be had."""
    try:
        found = load(run).y
    except DataError as error:
        note(f"no labels: {error}")
        return None
    if found is None:
        note(f"no labels: {run.experiment.exchange.data} has none")
    return found
