"""What several tests build: small experiments, data sets nobody has to load, made-up predictions."""

from __future__ import annotations

import numpy as np

from entangled.alignment import Fingerprint, Position, fingerprint
from entangled.distribution import Probabilities
from entangled.experiment import Experiment, parse

SAMPLES, CLASSES = 10, 3


def experiment(peers: tuple[str, ...] = ("a", "b"), epochs: int = 2, batch_size: int = 4, **exchange) -> Experiment:
    """An experiment with a short last batch on ten samples; `exchange` goes over the defaults of that table."""
    table = {"data": "mnist", "weight": {"schedule": "linear", "end": 1.0}, "patience": 60.0} | exchange
    values = {
        "name": "test",
        "epochs": epochs,
        "batch_size": batch_size,
        "exchange": table,
        "peers": {name: {"model": "mlp"} for name in peers},
    }
    return parse(values, "test")


def data(contents: float = 0.0) -> Fingerprint:
    """The fingerprint of a data set; another number means other contents."""
    return fingerprint(np.arange(SAMPLES), CLASSES, np.full((SAMPLES, 2), contents))


def prediction(peer: str, position: Position, rows: int, seed: int = 0) -> Probabilities:
    """What `peer` predicts for a batch: a function of the arguments alone."""
    random = np.random.default_rng([seed, *position, *peer.encode()])
    return random.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
