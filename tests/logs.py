"""Logs to look into, written as the coordinator writes them, without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from entangled.alignment import Layout, batch_digest, sample_order
from entangled.distribution import prediction_digest, statistics
from entangled.exchange_log import Row, genesis
from entangled.experiment import Experiment, parse
from entangled.experiment_file import dumps
from entangled.log_writer import Writer
from entangled.schedule import weight_at

SAMPLES, CLASSES = 10, 3
SECONDS = 1_700_000_000
"""When these runs began, since 1970."""


def keeping(log: str, peers: Iterable[str] = ("a", "b"), **exchange: object) -> Experiment:
    """The same with another `exchange.log`."""
    table = experiment(peers).exchange.model_dump(exclude_none=True)
    return experiment(peers, exchange={**table, "log": log, **exchange})


def experiment(peers: Iterable[str] = ("a", "b"), **values: object) -> Experiment:
    """Ten samples in batches of four, two epochs, λ from 0 to 1."""
    exchange = {"data": "tests.logs:digits", "weight": {"schedule": "linear", "end": 1.0}}
    basis = {"name": "test", "epochs": 2, "batch_size": 4, "exchange": exchange}
    return parse({**basis, "peers": {name: {"model": "mlp"} for name in peers}, **values}, "test")


def continuing(peers: Iterable[str] = ("a", "b", "c"), **exchange: object) -> Experiment:
    """The same, but for exchanges that go on without those who are missing."""
    table = experiment(peers).exchange.model_dump(exclude_none=True)
    return experiment(peers, exchange={**table, "on_missing": "continue", **exchange})


def comings_and_goings(index: int) -> tuple[str, ...]:
    """Who is there at an index: everybody at first and at last, then only two, then one alone."""
    return [("a", "b", "c"), ("a", "c"), ("c",), ("b", "c"), ("a",), ("a", "b", "c")][index]


def digits():
    """Ten images of 4 × 4; sample i is of class i % 3."""
    x = np.arange(SAMPLES * 16, dtype=np.uint8).reshape(SAMPLES, 4, 4)
    y = np.arange(SAMPLES) % CLASSES
    return (x, y), (x[:3], y[:3])


def rows(
    settings: Experiment,
    seed: int = 0,
    samples: int = SAMPLES,
    classes: int = CLASSES,
    who: Callable[[int], tuple[str, ...]] | None = None,
) -> Iterable[list[Row]]:
    """What the coordinator would log, an exchange at a time; predictions are random. By default, all take part."""
    layout, full = Layout(samples, settings.batch_size, settings.epochs), settings.exchange.log == "full"
    for index in range(layout.positions):
        position = layout.position(index)
        order = sample_order(np.arange(samples), settings.exchange.shuffle_buffer, settings.seed, position.epoch)
        ids = layout.batch(order, position.step)
        weight = float(np.float32(weight_at(settings.exchange.weight, position, layout)))
        members = who(index) if who else settings.peer_names
        places = [settings.peer_names.index(name) for name in members]
        predictions = [
            np.random.default_rng([seed, index, place]).dirichlet(np.ones(classes), len(ids)).astype(np.float32)
            for place in places
        ]
        measured = statistics(np.stack(predictions), settings.combination(members))
        yield [
            Row(
                position,
                index,
                peer,
                members,
                weight if len(members) > 1 else 0.0,
                ids,
                batch_digest(position, ids),
                (len(ids), classes),
                predictions[place],
                None if full else prediction_digest(predictions[place]),
                None if full else measured[place],
                0,
                (SECONDS + index) * 1_000_000 + place,
                1000 * place,
                100 + place,
            )
            for place, peer in enumerate(members)
        ]


class Recording:
    """A run's folder that is written exchange by exchange, as while it goes on."""

    def __init__(
        self,
        folder: Path,
        settings: Experiment | None = None,
        seed: int = 0,
        samples: int = SAMPLES,
        who: Callable[[int], tuple[str, ...]] | None = None,
    ) -> None:
        self.folder, self.settings = folder, settings or experiment()
        folder.mkdir(parents=True, exist_ok=True)
        toml = dumps(self.settings)
        (folder / "experiment.toml").write_text(toml, "utf-8")
        (folder / "run.json").write_text(json.dumps({"samples": samples, "classes": CLASSES, "contents_digest": ""}))
        self.writer = Writer(folder, genesis(toml))
        self._rows = iter(rows(self.settings, seed, samples, who=who))
        self.exchanges = 0

    def record(self, exchanges: int) -> None:
        """Write that many exchanges, each in a record batch of its own."""
        for _ in range(exchanges):
            for row in next(self._rows):
                self.writer.append(row)
            self.writer.flush()
            self.exchanges += 1

    def finish(self) -> Path:
        """Write what is left, end the log and the run."""
        for exchange in self._rows:
            for row in exchange:
                self.writer.append(row)
            self.writer.flush()
            self.exchanges += 1
        self.writer.finish_epoch()
        self.writer.thin(self.exchanges, self.settings.exchange.keeps)
        for place, name in enumerate(self.settings.peer_names):
            peer = self.folder / "peers" / name
            peer.mkdir(parents=True)
            lines = [{"epoch": e, "accuracy": 0.5 + 0.1 * e + 0.01 * place} for e in range(self.settings.epochs)]
            (peer / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {"exchanges": self.exchanges, "chain": self.writer.chain.hex()}
        (self.folder / "summary.json").write_text(json.dumps(summary))
        return self.folder


def finished(folder: Path, settings: Experiment | None = None, seed: int = 0) -> Path:
    """A finished run."""
    return Recording(folder, settings, seed).finish()


def of_some(folder: Path, **exchange: object) -> Path:
    """A finished run from which peers were missing: `comings_and_goings`."""
    return Recording(folder, continuing(**exchange), who=comings_and_goings).finish()


def unfinished(folder: Path, exchanges: int, settings: Experiment | None = None) -> Path:
    """A run whose coordinator was killed after that many exchanges: no end of stream, no summary."""
    recording = Recording(folder, settings)
    recording.record(exchanges)
    recording.writer.close()
    for stream in folder.glob("exchange/*.arrow"):
        stream.write_bytes(stream.read_bytes()[:-8])
    return folder
