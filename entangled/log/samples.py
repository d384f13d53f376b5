"""The samples that a log is about: labels and images, where the run's data set can be had here."""

from __future__ import annotations

import os
import sys

import numpy as np
import numpy.typing as npt

from entangled import datasets, private_data
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError, EntangledError
from entangled.log.reader import Note, Run


def load(run: Run) -> Dataset | Unlabelled:
    """The data set that the run exchanged predictions on.

    Raises:
        DataError: it cannot be had here, or is not the one that the run was made with.
    """
    name = run.experiment.exchange.data
    here = os.getcwd()
    sys.path.insert(0, here)  # the user's own `module:function`, as for a peer
    try:
        data = private_data.public(run.experiment) if run.experiment.private else datasets.load(name)
    except EntangledError:
        raise
    except Exception as error:  # the user's function may do what it likes
        raise DataError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(here)
    found = data.fingerprint().contents_digest.hex()
    if len(data.ids) != run.samples or (run.contents_digest and found != run.contents_digest):
        raise DataError(
            f"{name} is not the data that the run was made with",
            expected=f"{run.samples} samples, contents {run.contents_digest or 'not known'}",
            got=f"{len(data.ids)} samples, contents {found}",
        )
    return data


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
