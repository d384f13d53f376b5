"""Private labelled data for each peer, and the public unlabelled samples that predictions are exchanged on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entangled import datasets
from entangled.datasets import Dataset, Unlabelled
from entangled.errors import DataError, ExperimentError
from entangled.experiment import Experiment
from entangled.experiment_parts import Private
from entangled.splits import Hand, deal


def public(experiment: Experiment) -> Unlabelled:
    """The samples that the experiment's peers, who have private data, exchange predictions on.

    Raises:
        DataError: they cannot be had.
    """
    return datasets.load_unlabelled(experiment.exchange.data, experiment.exchange.classes)


def private(experiment: Experiment, peer: str, classes: int, own: str | None = None) -> Dataset:
    """One peer's private data.

    Args:
        experiment: the run's.
        peer: the name in it.
        classes: of the public data.
        own: a data set's name as of `datasets.load`, given on the peer's own side; None takes the experiment's.

    Raises:
        DataError: it cannot be had, or has not enough samples.
        ExperimentError: neither says which data it is.
    """
    settings = experiment.peers[peer].private
    if own is not None:
        return datasets.load(own, classes)
    if settings is None or settings.data is None:
        raise ExperimentError(f"peers.{peer}.private names no data: give it to the peer itself, --private npz:PATH")
    data = datasets.load(settings.data, classes)
    return _choose(data, [_dealt(experiment, settings.data, data)[peer]])


def pooled(experiment: Experiment, classes: int) -> Dataset:
    """Everybody's private data together, in the experiment's order; what nobody could do outside of an experiment.

    The test data is the first peer's.

    Raises:
        DataError: it cannot be had, or the peers' samples have different shapes.
    """
    names = [peer.private.data for peer in experiment.peers.values() if peer.private and peer.private.data]
    parts: list[Dataset] = []
    for name in dict.fromkeys(names):
        data = datasets.load(name, classes)
        parts.append(_choose(data, list(_dealt(experiment, name, data).values())))
    if len({part.x.shape[1:] for part in parts}) > 1:
        raise DataError("private data of different shapes cannot be pooled")
    x, y = np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])
    return parts[0]._replace(x=x, y=y, ids=np.arange(len(x), dtype=np.int64))


def _dealt(experiment: Experiment, name: str, data: Dataset) -> dict[str, datasets.SampleIds]:
    """By peer, the places of what it is dealt of a data set that all of them name."""
    hands = {peer: settings for peer, settings in _private(experiment) if settings.data == name}
    dealt = deal(
        data.y, [Hand(h.samples, h.classes, h.alpha) for h in hands.values()], experiment.seed, names=list(hands)
    )
    return dict(zip(hands, dealt, strict=True))


def _private(experiment: Experiment) -> list[tuple[str, Private]]:
    return [(name, peer.private) for name, peer in experiment.peers.items() if peer.private is not None]


def _choose(data: Dataset, places: Sequence[datasets.SampleIds]) -> Dataset:
    chosen = np.concatenate(places)
    return data._replace(x=data.x[chosen], y=data.y[chosen], ids=np.arange(len(chosen), dtype=np.int64))
