"""What a log says about the peers: divergences, entropies, agreement, waits. Pure, and streaming over blocks.

All logarithms are natural; probabilities are float32 in, float64 out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled.alignment import Layout, Position
from entangled.distribution import STATISTICS, Floats, divergence, entropy
from entangled.log.block import Block


def jensen_shannon(predictions: npt.NDArray[np.floating]) -> Floats:
    """How far several distributions are apart: H(mean) - mean H, the generalised Jensen-Shannon divergence.

    Equal weights; 0 where all are the same, log(number) where no two share a class. Lin, Divergence measures based on
    the Shannon entropy, IEEE Trans. Inf. Theory 37(1), 1991.

    Args:
        predictions: `(…, peers, rows, classes)`.

    Returns:
        `(…, rows)`, nats.

    >>> jensen_shannon(np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])).round(4).tolist()
    [0.6931, 0.0]
    """
    predictions = predictions.astype(np.float64)
    mixed = entropy(predictions.mean(axis=-3)) - entropy(predictions).mean(axis=-2)
    return np.maximum(mixed, 0.0)


class Quantiles:
    """Quantiles of any number of whole numbers ≥ 0, within 1 %, in constant memory.

    Counts in buckets: 64 to every power of two, so a bucket is at most 1/64 as wide as it is high up.

    >>> waits = Quantiles()
    >>> waits.add(np.arange(1, 1001))
    >>> waits.quantile(0.05), waits.quantile(0.95)
    (50.0, 947.5)
    """

    _BITS = 6

    def __init__(self) -> None:
        self._counts = np.zeros(64 << self._BITS, np.int64)

    def add(self, values: npt.NDArray[np.int64]) -> None:
        """Count `values`; below 0 counts as 0."""
        values = np.maximum(values.reshape(-1), 0)
        # Bits below the leading one and the six behind it are dropped.
        shift = np.maximum(np.frexp(values.astype(np.float64))[1] - self._BITS - 1, 0)
        buckets = (shift << self._BITS) + (values >> shift)
        self._counts += np.bincount(buckets, minlength=len(self._counts))

    def quantile(self, share: float) -> float:
        """The value that `share` (0 … 1) of all do not exceed, as the middle of its bucket; 0 if there are none."""
        total = int(self._counts.sum())
        if not total:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self._counts), np.ceil(share * total)))
        shift = max((bucket >> self._BITS) - 1, 0)
        low = bucket - (shift << self._BITS)
        return (low << shift) + ((1 << shift) - 1) / 2


@dataclass(frozen=True)
class PeerEpoch:
    """One peer in one epoch: means over the samples of exchanges in which it took part; None where there are none."""

    epoch: int
    peer: str
    exchanges: int
    """In which it took part."""
    weight_first: float
    """λ at the epoch's first exchange, and at the last."""
    weight_last: float
    entropy: float | None
    """This and the four after it as `entangled.distribution.statistics`; the last three without exchanges in which it
    was alone."""
    confidence: float | None
    agreement: float | None
    kl_self_other: float | None
    kl_other_self: float | None
    wait_ms_mean: float | None
    wait_ms_p95: float
    """Within 1 %."""
    bytes: int


class _EpochSums:
    """Sums over the blocks of one epoch."""

    def __init__(self, first: Block, peers: int) -> None:
        self.epoch, self.weight = first.epoch, float(first.weights[0])
        self.weight_last = self.weight
        self.exchanges, self.bytes = np.zeros((2, peers), np.int64)
        self.waits = np.zeros(peers)
        self.statistics, self.samples = np.zeros((2, peers, len(STATISTICS)))
        self.quantiles = [Quantiles() for _ in range(peers)]

    def add(self, block: Block) -> None:
        exchanges, rows = block.sample_ids.shape
        members = list(block.members)
        self.weight_last = float(block.weights[-1])
        self.exchanges[members] += exchanges
        measured = block.statistics
        known = ~np.isnan(measured)
        self.statistics[members] += measured.sum(axis=0, dtype=np.float64, where=known) * rows
        self.samples[members] += known.sum(axis=0) * rows
        for i, member in enumerate(members):
            self.quantiles[member].add(block.wait_us[:, i])
        self.waits[members] += block.wait_us.sum(axis=0)
        self.bytes[members] += block.bytes.sum(axis=0)

    def result(self, peers: Sequence[str]) -> list[PeerEpoch]:
        return [
            PeerEpoch(
                self.epoch,
                peer,
                int(self.exchanges[i]),
                self.weight,
                self.weight_last,
                wait_ms_mean=_mean(self.waits[i] / 1e3, self.exchanges[i]),
                wait_ms_p95=self.quantiles[i].quantile(0.95) / 1e3,
                bytes=int(self.bytes[i]),
                **dict(zip(STATISTICS, map(_mean, self.statistics[i], self.samples[i]), strict=True)),
            )
            for i, peer in enumerate(peers)
        ]


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def summarise(blocks: Iterable[Block], peers: Sequence[str]) -> Iterator[PeerEpoch]:
    """Every epoch and peer, as each epoch ends; memory does not depend on how many blocks there are."""
    sums: _EpochSums | None = None
    for block in blocks:
        if sums is not None and sums.epoch != block.epoch:
            yield from sums.result(peers)
            sums = None
        sums = sums or _EpochSums(block, len(peers))
        sums.add(block)
    if sums is not None:
        yield from sums.result(peers)


def divergences(blocks: Iterable[Block], samples: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each sample, the mean Jensen-Shannon divergence (nan if never seen), and the number of its exchanges.

    Only of exchanges among two or more.
    """
    sums, counts = np.zeros(samples), np.zeros(samples, np.int64)
    for block in (block for block in blocks if len(block.members) > 1):
        ids = block.sample_ids.reshape(-1)
        np.add.at(sums, ids, jensen_shannon(block.predictions).reshape(-1))
        np.add.at(counts, ids, 1)
    with np.errstate(invalid="ignore"):
        return sums / counts, counts


def most_divergent(divergence: Floats, count: int) -> npt.NDArray[np.int64]:
    """The ids of the `count` samples that diverge most, most first; of equals the lower id first."""
    order = np.argsort(-divergence, kind="stable")  # nan sorts last
    return order[: min(count, int(np.isfinite(divergence).sum()))].astype(np.int64)


def mean_predictions(blocks: Iterable[Block], sample_ids: Collection[int], peers: int, classes: int) -> Floats:
    """Each peer's mean prediction for each of `sample_ids`, `(samples, peers, classes)`; nan where it made none."""
    wanted = np.sort(np.array(list(sample_ids), np.int64))
    sums, counts = np.zeros((len(wanted), peers, classes)), np.zeros((len(wanted), peers, 1), np.int64)
    for block in blocks:
        exchange, row = np.nonzero(np.isin(block.sample_ids, wanted))
        places = np.searchsorted(wanted, block.sample_ids[exchange, row])
        for i, member in enumerate(block.members):
            np.add.at(sums[:, member], places, block.predictions[exchange, i, row])
            np.add.at(counts[:, member], places, 1)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    return means[np.searchsorted(wanted, np.array(list(sample_ids), np.int64))]


@dataclass(frozen=True)
class Sighting:
    """One exchange that a sample was in."""

    position: Position
    weight: float
    members: tuple[int, ...]
    """Who took part, by place."""
    predictions: npt.NDArray[np.float32]
    """Each member's prediction for the sample, `(members, classes)`."""


def sightings(blocks: Iterable[Block], sample_id: int) -> Iterator[Sighting]:
    """The exchanges that a sample was in, in order."""
    for block in blocks:
        for exchange, row in np.argwhere(block.sample_ids == sample_id).tolist():
            position = Position(block.epoch, int(block.steps[exchange]))
            weight, predictions = float(block.weights[exchange]), block.predictions[exchange, :, row]
            yield Sighting(position, weight, block.members, predictions)


@dataclass(frozen=True)
class Course:
    """How a run went, in equal stretches of it; nan where the log has nothing. `(…, stretches)` everywhere."""

    epochs: Floats
    """The middle of each stretch, in epochs from the run's beginning."""
    weight: Floats
    """λ."""
    agreement: Floats
    """`(peers, peers, stretches)`: the share of samples on which two peers agree."""
    divergence: Floats
    """`(peers, peers, stretches)`: KL(peer ‖ other peer)."""
    entropy: Floats
    """`(peers, stretches)`."""


def course(blocks: Iterable[Block], peers: int, layout: Layout, stretches: int = 200) -> Course:
    """The run in at most `stretches` stretches, each the mean over its samples (λ: over its exchanges)."""
    stretches = min(stretches, layout.positions)
    exchanges, weight = np.zeros((2, stretches))
    entropies = np.zeros((peers, stretches))
    agreements, divergences, samples = np.zeros((3, peers, peers, stretches))
    for block in blocks:
        place = block.indexes * stretches // layout.positions
        rows = block.sample_ids.shape[1]
        np.add.at(exchanges, place, 1)
        np.add.at(weight, place, block.weights.astype(np.float64))
        own = {member: block.predictions[:, i] for i, member in enumerate(block.members)}
        top = {member: p.argmax(axis=-1) for member, p in own.items()}
        for i in block.members:
            np.add.at(entropies[i], place, entropy(own[i]).sum(axis=1))
            for j in block.members:
                np.add.at(samples[i, j], place, rows)
                np.add.at(agreements[i, j], place, (top[i] == top[j]).sum(axis=1))
                np.add.at(divergences[i, j], place, divergence(own[i], own[j]).sum(axis=1))
    middle = (np.arange(stretches) + 0.5) / stretches * layout.epochs
    with np.errstate(invalid="ignore"):
        entropies /= np.diagonal(samples).T
        return Course(middle, weight / exchanges, agreements / samples, divergences / samples, entropies)
