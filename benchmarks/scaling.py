"""What bounds one coordinator, and how larger runs would be laid out: the figures of docs/scaling.md.

    python -m benchmarks.scaling [--write] [--only session --only streams --only sizes --only layouts]

All of it is CPU time and memory, which other work on the machine disturbs little. `session` drives the coordinator's
pure session with 2 … 1,000 peers, in process, without a socket. `streams` and `sizes` run coordinators with everything
on, and clients that only publish. `layouts` simulates runs that are spread over several sessions. `--write` puts the
tables into the page.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.many import described, run
from benchmarks.measuring import ROOT, Group, machine, output
from coordinator.events import Answer, Effect, Joined, PredictionArrived, Record, Synced
from coordinator.session import Session
from entangled import PROTOCOL_VERSION, codec
from entangled.alignment import Position, batch_digest, fingerprint
from entangled.distribution import Probabilities, published, transmitted

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
DISK_EVERY = 4
"""Exchanges after which the log is said to be on disk."""

Table = tuple[list[str], list[list[str]]]


# ---- the pure session


class Driven:
    """A session in process, whose peers predict in turn.

    Args:
        peers: how many.
        rows: of a batch.
        classes: of a distribution.
        exchanges: that it will have.
    """

    def __init__(self, peers: int, rows: int, classes: int, exchanges: int) -> None:
        self.session = Session(described(peers, rows, classes=classes), 0.0)
        data = fingerprint(np.arange(rows * exchanges), classes)
        for number, name in enumerate(self.session.members):
            self.session.handle(Joined(number, name, name, "here", PROTOCOL_VERSION, data), 0.0)
        self.seconds = 0.0
        """Of CPU in the session."""
        self._peers, self._rows = peers, rows

    def exchange(self, step: int, predictions: list[Probabilities]) -> list[Probabilities]:
        """One exchange: everybody's prediction in, everybody's soft target out."""
        position = Position(0, step)
        ids = self.session.order(0)[step * self._rows : (step + 1) * self._rows]
        digest = batch_digest(position, ids)
        events = [PredictionArrived([n], position, digest, [p], [p.nbytes], 0) for n, p in enumerate(predictions)]
        effects: list[Effect] = []
        began = time.process_time()
        for event in events:
            effects += self.session.handle(event, 0.0)
        if step % DISK_EVERY == DISK_EVERY - 1:
            self.session.handle(Synced(step + 1), 0.0)
        self.seconds += time.process_time() - began
        targets = [p for effect in effects if isinstance(effect, Answer) for p in effect.probabilities]
        if len(targets) != self._peers or not any(isinstance(effect, Record) for effect in effects):
            raise RuntimeError(f"exchange {step} is not complete")
        return targets


def made_up(peers: int, rows: int, classes: int, seed: int = 0) -> list[Probabilities]:
    """Random distributions, one set for each peer."""
    raw = np.random.default_rng(seed).random((peers, rows, classes), dtype=np.float32) + 1e-3
    return list(raw / raw.sum(axis=2, keepdims=True))


def session(peers: int, rows: int, classes: int) -> dict[str, float]:
    """Microseconds of CPU that one prediction costs the session, and the MiB that it takes at most."""
    exchanges = max(20, min(2000, 20_000 // peers, 2_000_000_000 // (peers * rows * classes * 40)))
    driven, before = Driven(peers, rows, classes, exchanges), _most_mib()
    predictions = made_up(peers, rows, classes)
    for step in range(exchanges):
        # An arrival has its own memory, as what is decoded has.
        driven.exchange(step, [p.copy() for p in predictions])
    return {"µs": driven.seconds / (exchanges * peers) * 1e6, "MiB": _most_mib() - before}


def _most_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_child(what: str, *arguments: int) -> dict[str, float]:
    """A function of this module in a process of its own."""
    with Group() as group:
        process = group.start("-m", "benchmarks.scaling", "--child", json.dumps([what, *arguments]))
        return json.loads(output(process).splitlines()[-1])


def session_table() -> Table:
    """The session by the number of peers, and by the size of a distribution."""
    lines: list[list[str]] = []
    small = [(peers, 8, 10) for peers in (2, 8, 64, 256, 1000)]
    for peers, rows, classes in [*small, (1000, 128, 10), (8, 64, 1000), (8, 16, 50_257), (8, 16, 131_072)]:
        found = in_child("session", peers, rows, classes)
        per_second = 1e6 / (found["µs"] * peers)
        size = f"{rows} × {classes:,}"
        lines.append([f"{peers:,}", size, _brief(found["µs"]), _brief(per_second), f"{found['MiB']:.0f}"])
        print(lines[-1], file=sys.stderr, flush=True)
    return ["peers", "batch", "µs of CPU per prediction", "exchanges a second at most", "MiB it grew by"], lines


# ---- with everything on


_SPARSE = {"encoding": "sparse", "publish": {"top_k": 32}}
SIZES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("8 × 10", 8, 10, {}),
    ("128 × 10", 128, 10, {}),
    ("64 × 1,000", 64, 1000, {}),
    ("64 × 50,257, float32", 64, 50_257, {"classes": 50_257}),
    ("… float16", 64, 50_257, {"classes": 50_257, "encoding": "float16"}),
    ("… sparse, 32 of a row", 64, 50_257, {"classes": 50_257, **_SPARSE}),
    ("16 × 131,072, sparse, 32 of a row", 16, 131_072, {"classes": 131_072, **_SPARSE}),
]


def wire_bytes(rows: int, classes: int, exchange: dict[str, Any], peers: int = 2) -> tuple[int, int]:
    """Bytes of a prediction and of a soft target of two peers as messages."""
    settings = described(peers, rows, **exchange).exchange
    publish, encoding = settings.publish, codec.encoding(settings.encoding)
    shown = published(made_up(1, rows, classes)[0], publish.temperature, publish.top_k, publish.decimals)
    shown = transmitted(shown, settings.encoding)
    position, digest = Position(0, 100), bytes(16)
    up = codec.encode_prediction(position, digest, shown, encoding)
    down = codec.encode_soft_target(position, digest, 0.1, shown, encoding)
    return up.ByteSize(), down.ByteSize()


def streams_table() -> Table:
    """A coordinator's process by the number of peers and of streams."""
    lines: list[list[str]] = []
    for peers, processes in ((2, 2), (8, 8), (8, 2), (64, 2), (256, 2), (1000, 2)):
        found = run(peers, processes, 8, 10, max(40, min(1000, 20_000 // peers)), patience=3600.0)
        at_most = 1e6 / (found.cpu["coordinator"] * peers)
        cpu = [_brief(found.cpu["coordinator"]), _brief(found.cpu["client"])]
        lines.append([f"{peers:,}", str(processes), *cpu, _brief(at_most), f"{found.mib:.0f}"])
        print(lines[-1], file=sys.stderr, flush=True)
    head = ["peers", "streams", "coordinator's µs of CPU per peer and exchange", "client's"]
    return [*head, "exchanges a second of one core", "coordinator's MiB"], lines


def sizes_table() -> Table:
    """A coordinator's process by the size of what two peers predict."""
    lines: list[list[str]] = []
    for what, rows, classes, exchange in SIZES:
        up, down = wire_bytes(rows, classes, exchange)
        exchanges = max(10, min(1000, 40_000_000 // (rows * classes)))
        found = run(2, 2, rows, classes, exchanges, patience=3600.0, **exchange)
        cpu = found.cpu["coordinator"]
        sizes = [f"{size:,.0f}" for size in (up, down, found.log_bytes)]
        lines.append([what, *sizes, _brief(cpu), _brief((up + down) / cpu), f"{found.mib:.0f}"])
        print(lines[-1], file=sys.stderr, flush=True)
    head = ["batch", "bytes of a prediction", "of a soft target", "in the log"]
    head += ["coordinator's µs of CPU per peer and exchange", "MB a second of one core", "coordinator's MiB"]
    return head, lines


# ---- spread over several sessions


def one(peers: int, rows: int, classes: int, exchanges: int) -> tuple[float, float, list[list[Probabilities]]]:
    """All in one session: seconds of CPU for an exchange, in all and on the longest way; the soft targets."""
    driven = Driven(peers, rows, classes, exchanges)
    made = [made_up(peers, rows, classes, seed) for seed in range(exchanges)]
    targets = [driven.exchange(step, made[step]) for step in range(exchanges)]
    return driven.seconds / exchanges, driven.seconds / exchanges, targets


def rows_apart(
    shards: int, peers: int, rows: int, classes: int, exchanges: int
) -> tuple[float, float, list[list[Probabilities]]]:
    """Each batch's rows dealt to several coordinators, each of which is a run of its own to its peers."""
    part = rows // shards
    driven = [Driven(peers, part, classes, exchanges) for _ in range(shards)]
    found: list[list[Probabilities]] = []
    for step in range(exchanges):
        made = made_up(peers, rows, classes, step)
        cut = [[p[shard * part : (shard + 1) * part] for p in made] for shard in range(shards)]
        parts = [one.exchange(step, mine) for one, mine in zip(driven, cut, strict=True)]
        found.append([np.concatenate(rows) for rows in zip(*parts, strict=True)])
    seconds = [one.seconds / exchanges for one in driven]
    return sum(seconds), max(seconds), found


def relays(
    groups: int, peers: int, rows: int, classes: int, exchanges: int
) -> tuple[float, float, list[list[Probabilities]]]:
    """Relays that combine their own peers', and tell a coordinator above them only the mean of these.

    Peer i of a group of g gets ((n - g) · the other groups' mean + (g - 1) · its own group's others' mean) / (n - 1).
    """
    size = peers // groups
    below = [Driven(size, rows, classes, exchanges) for _ in range(groups)]
    above = Driven(groups, rows, classes, exchanges)
    found: list[list[Probabilities]] = []
    combining = 0.0
    for step in range(exchanges):
        made = made_up(peers, rows, classes, step)
        mine = [made[group * size : (group + 1) * size] for group in range(groups)]
        near = [one.exchange(step, group) for one, group in zip(below, mine, strict=True)]
        began = time.process_time()
        means = [np.mean(group, axis=0, dtype=np.float64).astype(np.float32) for group in mine]
        combining += time.process_time() - began
        far = above.exchange(step, means)
        began = time.process_time()
        found.append(
            [
                (((peers - size) * np.float64(away) + (size - 1) * np.float64(own)) / (peers - 1)).astype(np.float32)
                for group, away in zip(near, far, strict=True)
                for own in group
            ]
        )
        combining += time.process_time() - began
    seconds = [one.seconds / exchanges for one in below]
    each = combining / exchanges / groups
    return (
        sum(seconds) + above.seconds / exchanges + combining / exchanges,
        max(seconds) + above.seconds / exchanges + each,
        found,
    )


Layout = Callable[[], tuple[float, float, list[list[Probabilities]]]]


def layouts_tables(peers: int = 1000, exchanges: int = 40) -> Iterator[Table]:
    """A thousand peers, and a vocabulary, in one session and spread."""
    size = peers, 8, 10, exchanges
    yield _compared(
        f"{peers:,} peers, 8 × 10",
        {
            "one coordinator": lambda: one(*size),
            "rows over 2 coordinators": lambda: rows_apart(2, *size),
            "rows over 8 coordinators": lambda: rows_apart(8, *size),
            f"8 relays of {peers // 8} peers": lambda: relays(8, *size),
            f"40 relays of {peers // 40} peers": lambda: relays(40, *size),
        },
    )
    wide = 8, 16, 50_257, 4
    yield _compared(
        "8 peers, 16 × 50,257",
        {
            "one coordinator": lambda: one(*wide),
            "rows over 4 coordinators": lambda: rows_apart(4, *wide),
            "rows over 16 coordinators": lambda: rows_apart(16, *wide),
        },
    )


def _compared(what: str, spread: dict[str, Layout]) -> Table:
    """Layouts side by side; the first one's soft targets are what the others' should be."""
    lines: list[list[str]] = []
    expected: list[list[Probabilities]] | None = None
    for layout, simulate in spread.items():
        total, longest, targets = simulate()
        expected = expected or targets
        apart = max(float(np.abs(np.stack(a) - np.stack(b)).max()) for a, b in zip(targets, expected, strict=True))
        differ = "the same bits" if apart == 0 else f"{apart:.1e}"
        lines.append([layout, f"{total * 1e3:.2f}", f"{longest * 1e3:.2f}", differ])
        print(lines[-1], file=sys.stderr, flush=True)
    head = [what, "ms of CPU in sessions per exchange", "of them one after the other"]
    return [*head, "soft targets differ by at most"], lines


# ---- the page


def _brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(table: Table) -> str:
    head, lines = table
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *lines))


def main(
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/scaling.md.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="session, streams, sizes or layouts.")] = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, and print the tables as Markdown."""
    if child:
        what, *arguments = json.loads(child)
        print(json.dumps({"session": session}[what](*arguments)))
        return
    parts: dict[str, Callable[[], list[Table]]] = {
        "session": lambda: [session_table()],
        "streams": lambda: [streams_table()],
        "sizes": lambda: [sizes_table()],
        "layouts": lambda: list(layouts_tables()),
    }
    for name, measure in parts.items():
        if only and name not in only:
            continue
        tables = "\n\n".join(map(_markdown, measure()))
        said = f"`python -m benchmarks.scaling --only {name}`, {datetime.now(UTC):%Y-%m-%d}, on {machine()}:"
        text = f"{said}\n\n{tables}"
        print(text, flush=True)
        if write:
            before, rest = PAGE.read_text("utf-8").split(BEGIN.format(name), 1)
            _, after = rest.split(END.format(name), 1)
            page = f"{before}{BEGIN.format(name)}\n{text}\n{END.format(name)}{after}"
            PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    typer.run(main)
