"""The same samples, different features: each peer has its own view of them, joined by sample id."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from entangled import datasets
from entangled.alignment import SampleIds
from entangled.datasets import Dataset
from entangled.errors import AlignmentError, DataError, ExperimentError
from entangled.experiment import Experiment

FILE = "sample_ids.npy"
"""In a run's folder: the ids of the samples that all peers have."""

SHOWN = 10
"""Sample ids that a message names."""


@dataclass(frozen=True)
class View:
    """One peer's features and labels of its samples.

    Attributes:
        names: the ids by which the peers know the samples, int64 `(samples,)`, in the order of `data`, each once.
        data: features and labels.
    """

    names: SampleIds
    data: Dataset

    def only(self, common: SampleIds) -> Dataset:
        """The samples that all peers have.

        Sample id k of the run is the k-th of `common`, for every peer, whatever the order of its own file. What peers
        compare at joining is `common` itself: contents differ.

        Args:
            common: ids of samples, ascending.

        Raises:
            AlignmentError: this view lacks some of them.

        >>> x, y = np.array([[5.0], [3.0], [9.0]], np.float32), np.array([1, 0, 1])
        >>> view = View(np.array([5, 3, 9]), Dataset(x, y, np.arange(3), x[:0], y[:0], 2))
        >>> view.only(np.array([3, 5])).x.tolist()
        [[3.0], [5.0]]
        """
        order = np.argsort(self.names)
        places = order[np.minimum(np.searchsorted(self.names, common, sorter=order), len(order) - 1)]
        lacking = common[self.names[places] != common]
        if len(lacking):
            raise AlignmentError("samples that all peers had are gone", got=f"no {shown(lacking)}")
        ids = np.arange(len(common), dtype=np.int64)
        return self.data._replace(x=self.data.x[places], y=self.data.y[places], ids=ids, compared=common)


def shown(ids: SampleIds) -> str:
    """Sample ids for people: the first few, and how many there are."""
    listed = ", ".join(map(str, ids[:SHOWN].tolist()))
    return f"{len(ids)} samples ({listed}{', …' if len(ids) > SHOWN else ''})"


def load(experiment: Experiment, peer: str, own: str | None = None) -> View:
    """One peer's view.

    Args:
        experiment: the run's.
        peer: the name in it.
        own: a data set's name, given on the peer's own side; None takes the experiment's.

    Raises:
        DataError: it cannot be had, has not enough columns, or an id twice.
        ExperimentError: neither says which data it is.
    """
    settings = experiment.peers[peer].view
    name = own or (settings and settings.data) or experiment.exchange.data
    if settings is None or not name:
        raise ExperimentError(f"peers.{peer}.view names no data: give it to the peer itself, --view npz:PATH")
    view = read(name, experiment.exchange.classes)
    if settings.columns is None:
        return view
    first, stop = settings.columns
    width = view.data.x.shape[-1]
    if stop > width:
        raise DataError(f"{name} has not so many columns", expected=f"at most {width}", got=str(stop))
    data = view.data._replace(x=view.data.x[..., first:stop], test_x=view.data.test_x[..., first:stop])
    return replace(view, data=data)


def read(name: str, classes: int | None) -> View:
    """A labelled data set with its samples' ids: the array `ids` of an npz file, else 0, 1, ….

    Raises:
        DataError: it cannot be had, or its ids are not whole numbers, one for each sample.
    """
    data, names = datasets.load_named(name, classes)
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise DataError(f"{name} has a sample id twice", got=str(unique[counts > 1][0]))
    return View(names, data)
