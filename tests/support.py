"""What several tests build: small experiments, data sets nobody has to load, made-up predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from entangled.alignment import Fingerprint, Layout, Position, batch_digest, fingerprint, sample_order
from entangled.distribution import Probabilities, prediction_digest, statistics
from entangled.errors import EntangledError
from entangled.exchange_log import Row, genesis
from entangled.experiment import Experiment, parse
from entangled.log_writer import Writer

SAMPLES, CLASSES = 10, 3
GENESIS = genesis("name = 'test'")


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
    if exchange.pop("vertical", False):
        del table["vertical"]
        values["peers"] = {name: {"model": "mlp", "view": {}} for name in peers}
    if exchange.get("combine") == "coverage":
        values["peers"] = {name: {"model": "mlp", "covers": [i % CLASSES]} for i, name in enumerate(peers)}
    return parse(values, "test")


def data(contents: float = 0.0) -> Fingerprint:
    """The fingerprint of a data set; another number means other contents."""
    return fingerprint(np.arange(SAMPLES), CLASSES, np.full((SAMPLES, 2), contents))


def prediction(peer: str, position: Position, rows: int, seed: int = 0) -> Probabilities:
    """What `peer` predicts for a batch: a function of the arguments alone."""
    random = np.random.default_rng([seed, *position, *peer.encode()])
    return random.dirichlet(np.ones(CLASSES), rows).astype(np.float32)


def raised(kind: type[EntangledError], call: Callable[..., object], *arguments: object) -> EntangledError | None:
    """The error of this kind that `call` raises, or None; any other goes through."""
    try:
        call(*arguments)
    except kind as error:
        return error
    return None


def log_rows(
    peers: tuple[str, ...] = ("a", "b"), epochs: int = 2, samples: int = SAMPLES, size: int = 4, lookahead: int = 0
) -> list[Row]:
    """The rows that a run writes, in the log's order."""
    layout = Layout(samples=samples, batch_size=size, epochs=epochs)
    rows: list[Row] = []
    for index in range(layout.positions):
        position = layout.position(index)
        ids = layout.batch(sample_order(np.arange(samples), "full", 0, position.epoch), position.step)
        predictions = [prediction(peer, position, len(ids)) for peer in peers]
        measured = statistics(np.stack(predictions))
        for place, peer in enumerate(peers):
            rows.append(
                Row(
                    position=position,
                    index=index,
                    peer=peer,
                    members=peers,
                    weight=float(np.float32(0.1 * position.epoch)),
                    sample_ids=ids,
                    digest=batch_digest(position, ids),
                    shape=predictions[place].shape,
                    prediction=predictions[place],
                    prediction_digest=prediction_digest(predictions[place]),
                    statistics=measured[place],
                    staleness=min(lookahead, index),
                    received_at=1_700_000_000_000_000 + 1000 * index + place,
                    wait_us=10 * place,
                    bytes=100 + place,
                )
            )
    return rows


def writer(run: Path) -> Writer:
    """A writer of a run's log."""
    return Writer(run, GENESIS)


def same(one: Row, other: Row) -> bool:
    """Whether two rows of the log are equal in every column."""
    plain = [(r.position, r.index, r.peer, r.members, r.weight, r.digest) for r in (one, other)]
    plain_too = [(r.staleness, r.received_at, r.wait_us, r.bytes) for r in (one, other)]
    return (
        said_the_same(one, other)
        and plain[0] == plain[1]
        and plain_too[0] == plain_too[1]
        and np.array_equal(one.sample_ids, other.sample_ids)
    )


def said_the_same(one: Row, other: Row) -> bool:
    """Whether the columns about the prediction are equal, to the bit."""
    measured = [None if r.statistics is None else r.statistics.tobytes() for r in (one, other)]
    hashed = [(r.shape, r.prediction_digest, bits) for r, bits in zip((one, other), measured, strict=True)]
    bits = [None if r.prediction is None else (r.prediction.shape, r.prediction.tobytes()) for r in (one, other)]
    return hashed[0] == hashed[1] and bits[0] == bits[1]
