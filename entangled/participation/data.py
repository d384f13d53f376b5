"""What a peer may give as its data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from entangled import datasets, views
from entangled.alignment import Fingerprint, fingerprint
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError, MembershipError
from entangled.experiment import Experiment
from entangled.views import View

Data = Dataset | Unlabelled | Fingerprint


def fingerprint_of(data: Data) -> Fingerprint:
    """What the coordinator compares."""
    return data if isinstance(data, Fingerprint) else data.fingerprint()


def described(data: Any, classes: int | None) -> Data:
    """A data set, or what is known of one.

    Args:
        data: a data set of `entangled.datasets`; a fingerprint; the sample ids, 0, 1, … samples - 1; or their number.
            Where it is only ids or their number, contents are not compared, and no peer of the run may give them.
        classes: number of classes; for ids and numbers.

    Raises:
        DataError: it is none of them.
    """
    if isinstance(data, Dataset | Unlabelled | Fingerprint):
        return data
    ids = np.arange(data, dtype=np.int64) if isinstance(data, int) else np.asarray(data)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            "this is no data set", expected="a Dataset, a Fingerprint, or sample ids", got=type(data).__name__
        )
    if classes is None:
        raise DataError("say how many classes there are: entangled.join(…, data=ids, classes=10)")
    return fingerprint(ids.astype(np.int64), classes)


def choose(experiment: Experiment, name: str, data: Any, classes: int | None) -> Data | View:
    """What a peer exchanges predictions on: what it gave, or the experiment's own. A view is yet to be agreed on.

    Raises:
        MembershipError: the experiment has no such peer.
        DataError: the data cannot be had.
    """
    if name not in experiment.peers:
        raise MembershipError("no such peer in this experiment", expected=" or ".join(experiment.peer_names), got=name)
    if callable(data):
        data = data(experiment)
    named = data if isinstance(data, str) else None
    if experiment.vertical and (data is None or named is not None):
        return views.load(experiment, name, named)
    if named is not None:
        return datasets.load(named, experiment.exchange.classes)
    if isinstance(data, View):
        return data
    if data is not None:
        return described(data, classes)
    if experiment.peers[name].private is not None:
        return datasets.load_unlabelled(experiment.exchange.data, experiment.exchange.classes)
    return datasets.load(experiment.exchange.data, experiment.exchange.classes)
