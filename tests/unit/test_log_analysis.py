"""What is computed from a log, against the definitions written out, sample by sample."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entangled.alignment import Layout
from entangled.distribution import MEAN, divergence, entropy
from entangled.log import reader
from entangled.log.analysis import (
    Quantiles,
    course,
    divergences,
    jensen_shannon,
    mean_predictions,
    most_divergent,
    summarise,
)
from entangled.log.block import Block, Exchange
from entangled.log.reader import blocks, exchanges, open_run
from tests import logs


def kl(p: list[float], q: list[float]) -> float:
    p, q = ([min(max(x, 1e-7), 1.0) for x in d] for d in (p, q))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def nats(p: list[float]) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("log", ["sampled", "statistics"])
def test_the_summary_needs_no_predictions(tmp_path: Path, log: str) -> None:
    full = open_run(logs.finished(tmp_path / "full"))
    thinned = open_run(logs.finished(tmp_path / "thinned", logs.keeping(log)))
    assert sum(block.kept is None for block in blocks(thinned)) > 0
    assert list(summarise(blocks(thinned), thinned.peers)) == list(summarise(blocks(full), full.peers))


@pytest.mark.parametrize("peers", [("a", "b"), ("a", "b", "c")])
def test_the_summary_is_what_its_definitions_say(tmp_path: Path, peers: tuple[str, ...]) -> None:
    run = open_run(logs.finished(tmp_path, logs.experiment(peers)))
    found = list(summarise(blocks(run), run.peers))
    assert [(line.epoch, line.peer) for line in found] == [(e, p) for e in (0, 1) for p in peers]
    for line in found:
        i = peers.index(line.peer)
        self_other, other_self, own_entropy, most, same = [], [], [], [], []
        for exchange in exchanges(run, epochs=[line.epoch]):
            for row in range(len(exchange.sample_ids)):
                said = exchange.predictions[:, row].astype(float).tolist()
                others = [said[j] for j in range(len(peers)) if j != i]
                target = [mean(list(column)) for column in zip(*others, strict=True)]
                self_other.append(kl(said[i], target))
                other_self.append(kl(target, said[i]))
                own_entropy.append(nats(said[i]))
                most.append(max(said[i]))
                same.append(mean([float(np.argmax(o) == np.argmax(said[i])) for o in others]))
        assert line.exchanges == 3
        assert line.weight_first == line.weight_last == 0.5 * line.epoch
        assert line.kl_self_other == pytest.approx(mean(self_other), rel=1e-6)
        assert line.kl_other_self == pytest.approx(mean(other_self), rel=1e-6)
        assert line.entropy == pytest.approx(mean(own_entropy), rel=1e-6)
        assert line.confidence == pytest.approx(mean(most), rel=1e-6)
        assert line.agreement == pytest.approx(mean(same))
        assert line.wait_ms_mean == pytest.approx(i)
        assert line.wait_ms_p95 == pytest.approx(i, rel=0.01)
        assert line.bytes == 3 * (100 + i)


def test_the_weight_at_both_ends_of_an_epoch(tmp_path: Path) -> None:
    exchange = {"data": "mnist", "weight": {"schedule": "linear", "end": 0.6, "per": "step"}}
    run = open_run(logs.finished(tmp_path, logs.experiment(exchange=exchange)))
    ends = {(line.weight_first, line.weight_last) for line in summarise(blocks(run), run.peers)}
    assert ends == {tuple(np.array(pair, np.float32).tolist()) for pair in [(0.0, 0.2), (0.3, 0.5)]}


def test_divergence_is_keras(tmp_path: Path) -> None:
    p, q = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    expected = math.log(1e7) - 1e-7 * math.log(1e7)  # both clipped: 1·log(1/1e-7) + 1e-7·log(1e-7/1)
    np.testing.assert_allclose(divergence(p, q), [expected, 0.0], rtol=1e-6)


def test_jensen_shannon_lies_between_nothing_and_the_logarithm_of_the_number() -> None:
    apart = np.eye(3)[:, None, :]
    assert jensen_shannon(apart)[0] == pytest.approx(math.log(3))
    assert jensen_shannon(np.repeat(apart[:1], 3, axis=0))[0] == 0.0
    random = np.random.default_rng(0).dirichlet(np.ones(4), (5, 2, 7))
    middle = random.mean(axis=1)
    by_definition = (divergence(random[:, 0], middle) + divergence(random[:, 1], middle)) / 2
    np.testing.assert_allclose(jensen_shannon(random), by_definition, atol=1e-6)
    assert (entropy(random) <= math.log(4)).all()


def test_quantiles_are_within_one_percent() -> None:
    values = (np.random.default_rng(0).pareto(1.0, 20_000) * 1000).astype(np.int64)
    found = Quantiles()
    for part in np.array_split(values, 7):
        found.add(part)
    for share in (0.01, 0.5, 0.95, 0.999):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert found.quantile(share) == pytest.approx(exact, rel=0.01, abs=0.5)
    assert Quantiles().quantile(0.95) == 0.0
    largest = Quantiles()
    largest.add(np.array([2**62, -5]))
    assert largest.quantile(1.0) == pytest.approx(2**62, rel=0.01)
    assert largest.quantile(0.5) == 0.0


def test_disagreements_are_averaged_per_sample_and_ordered(tmp_path: Path) -> None:
    run = open_run(logs.finished(tmp_path))
    by_sample: dict[int, list[np.ndarray]] = {}
    for exchange in exchanges(run):
        for row, sample in enumerate(exchange.sample_ids.tolist()):
            by_sample.setdefault(sample, []).append(exchange.predictions[:, row])
    found, counts = divergences(blocks(run), run.samples)
    assert counts.tolist() == [2] * logs.SAMPLES
    for sample, said in by_sample.items():
        each = [float(jensen_shannon(p[:, None])[0]) for p in said]
        assert found[sample] == pytest.approx(mean(each), rel=1e-6)
    top = most_divergent(found, 4).tolist()
    assert top == sorted(by_sample, key=lambda s: -found[s])[:4]
    means = mean_predictions(blocks(run), top, 2, logs.CLASSES)
    np.testing.assert_allclose(means, [np.mean(by_sample[s], axis=0) for s in top], rtol=1e-6)


@pytest.mark.parametrize("stretches", [200, 2])
def test_the_course_of_a_run(tmp_path: Path, stretches: int) -> None:
    settings = logs.experiment(("a", "b", "c"))
    run = open_run(logs.unfinished(tmp_path, 5, settings))
    found = course(blocks(run), 3, run.layout, stretches)
    width = max(6 // stretches, 1)
    assert found.epochs.tolist() == pytest.approx([(i + 0.5) * width / 3 for i in range(6 // width)])
    by_stretch: list[list[Exchange]] = [[] for _ in found.epochs]
    for exchange in exchanges(run):
        by_stretch[exchange.index // width].append(exchange)
    for place, inside in enumerate(by_stretch):
        if not inside:  # the sixth exchange is not in the log
            assert np.isnan([found.weight[place], found.entropy[1, place], found.agreement[0, 1, place]]).all()
            continue
        a, b = (np.concatenate([e.predictions[i] for e in inside]) for i in (0, 1))
        assert found.weight[place] == pytest.approx(mean([e.weight for e in inside]))
        assert found.agreement[0, 1, place] == pytest.approx(mean((a.argmax(1) == b.argmax(1)).tolist()))
        apart = [kl(q, p) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
        assert found.divergence[1, 0, place] == pytest.approx(mean(apart), rel=1e-5)
        assert found.entropy[0, place] == pytest.approx(mean([nats(p) for p in a.tolist()]), rel=1e-5)


def test_samples_that_were_never_seen_are_not_among_the_most_divergent() -> None:
    assert most_divergent(np.array([np.nan, 0.1, 0.3, np.nan, 0.3]), 9).tolist() == [2, 4, 1]


def synthetic(count: int) -> Iterator[Block]:
    """`count` blocks of an epoch, each made when it is asked for."""
    for i in range(count):
        predictions = np.full((64, 2, 32, 10), 0.1, np.float32)
        numbers = np.full((64, 2), i, np.int64)
        ids = np.tile(np.arange(32), (64, 1))
        indexes = np.arange(64) + 64 * i
        weights, about = np.zeros(64, np.float32), (0, (0, 1), indexes, indexes)
        yield Block(*about, weights, ids, predictions, None, MEAN, numbers, numbers, numbers)


@pytest.mark.parametrize(
    "consume",
    [
        lambda blocks: list(summarise(blocks, "ab")),
        lambda blocks: divergences(blocks, 32),
        lambda blocks: course(blocks, 2, Layout(32 * 64 * 60, 32, 1)),
    ],
    ids=["summary", "disagreements", "course"],
)
def test_memory_does_not_grow_with_the_log(consume) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        consume(synthetic(count))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)  # what is imported and cached at first use
    block = next(synthetic(1)).predictions.nbytes
    assert peak(60) - peak(3) < block / 2


def test_the_reader_holds_one_record_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader.read_batches
    given = 0

    def counting(*arguments):
        nonlocal given
        for batch in read(*arguments):
            given += 1
            yield batch

    monkeypatch.setattr(reader, "read_batches", counting)
    run = open_run(logs.unfinished(tmp_path, 3))
    for number, _ in enumerate(exchanges(run), start=1):
        assert given == number
