"""Exchanges a second, everything on, against the same stack without any of it, and against what others offer.

    python -m benchmarks.exchange [--peers 2] [--rows 8] [--classes 10] [--rounds 5] [--only bare --only log-off …]
                                  [--flower-python flower-env/bin/python]

Clients without any ML framework publish random distributions as fast as they can; see `benchmarks.barriers`. `float16`
and `sparse` are everything on in another `exchange.encoding`, sparse with 64 classes of each row published. Flower is
measured where there is an environment with it; `benchmarks.flower_barrier` says how to make one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measuring import Group, in_turns, rate, ratio
from entangled.experiment import parse
from entangled.experiment_file import dumps

PUBLISHED = 64
"""Classes of each row that a sparse prediction has."""


def entangled(
    peers: int,
    rows: int,
    classes: int,
    exchanges: int,
    *,
    log: bool = True,
    encoding: str = "float32",
) -> float:
    """Everything on: a coordinator's process, checks, digests, and the log unless it is off."""
    publish = {"top_k": PUBLISHED} if encoding == "sparse" else {}
    names = [f"p{number}" for number in range(peers)]
    experiment = parse(
        {
            "name": "benchmark",
            "epochs": 1,
            "batch_size": rows,
            "exchange": {"data": "mnist", "shuffle": "full", "encoding": encoding, "publish": publish},
            "peers": {name: {"model": "mlp"} for name in names},
        },
        "benchmark",
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        source, run, address = Path(folder) / "e.toml", Path(folder) / "run", f"unix:{folder}/c.sock"
        source.write_text(dumps(experiment), "utf-8")
        if log:
            server = group.start("-m", "coordinator", str(source), "--listen", address, "--run-dir", str(run))
        else:
            server = group.start("-m", "benchmarks.barriers", "without-log", str(source), str(run), address)
        clients = [
            group.start("-m", "benchmarks.barriers", "entangled", address, name, *_size(rows, classes, exchanges))
            for name in names
        ]
        rates = [rate(client) for client in clients]
        server.wait(60)
        return min(rates)


def bare(peers: int, rows: int, classes: int, exchanges: int) -> float:
    """The same gRPC stack, bare."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        address = f"unix:{folder}/c.sock"
        group.start("-m", "benchmarks.barriers", "bare-server", address, str(peers))
        clients = [
            group.start("-m", "benchmarks.barriers", "bare", address, str(n), *_size(rows, classes, exchanges))
            for n in range(peers)
        ]
        return min(rate(client) for client in clients)


def polled(peers: int, rows: int, classes: int, exchanges: int) -> float:
    """The bare barrier without `grpc.aio` and its threads."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        address, size = f"unix:{folder}/c.sock", _size(rows, classes, exchanges)
        group.start("-m", "benchmarks.polled", "server", address, str(peers))
        clients = [group.start("-m", "benchmarks.polled", "peer", address, str(n), *size) for n in range(peers)]
        return min(rate(client) for client in clients)


def gloo(peers: int, rows: int, classes: int, exchanges: int) -> float:
    """`torch.distributed.all_gather`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Group() as group:
        store, size = f"{folder}/store", _size(rows, classes, exchanges)
        ranks = [
            group.start("-m", "benchmarks.barriers", "gloo", store, str(n), str(peers), *size) for n in range(peers)
        ]
        return min(rate(rank) for rank in ranks)


def ray(peers: int, rows: int, classes: int, exchanges: int) -> float:
    """A Ray actor."""
    with Group() as group:
        size = _size(rows, classes, max(100, exchanges // 10))
        return rate(group.start("-m", "benchmarks.barriers", "ray", str(peers), *size))


def flower(peers: int, rows: int, classes: int, exchanges: int, python: str) -> float:
    """Flower's simulation, by the Python of an environment that has it."""
    with Group() as group:
        size = _size(rows, classes, max(30, exchanges // 200))
        return rate(group.start("benchmarks/flower_barrier.py", "--peers", str(peers), *size, python=python))


CONTENDERS: dict[str, Callable[[int, int, int, int], float]] = {
    "entangled": entangled,
    "float16": lambda *size: entangled(*size, encoding="float16"),
    "sparse": lambda *size: entangled(*size, encoding="sparse"),
    "log-off": lambda *size: entangled(*size, log=False),
    "bare": bare,
    "polled": polled,
    "gloo": gloo,
    "ray": ray,
}


def _size(rows: int, classes: int, exchanges: int) -> list[str]:
    return ["--rows", str(rows), "--classes", str(classes), "--exchanges", str(exchanges)]


def main(
    peers: Annotated[int, typer.Option(help="How many, one process each.")] = 2,
    rows: Annotated[int, typer.Option(help="Of a batch.")] = 8,
    classes: Annotated[int, typer.Option()] = 10,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 5,
    exchanges: Annotated[int, typer.Option(help="Of one measurement; 0 chooses.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Contenders beside entangled.")] = None,
    flower_python: Annotated[
        str | None,
        typer.Option(envvar="FLOWER_PYTHON", help="Python of an environment with Flower; else it is left out."),
    ] = None,
) -> None:
    """Measure in turns and print every rate, the medians and our ratio to each."""
    fewest = 1200 if rows * classes >= 100_000 else 300  # large ones: until memory is what it will be for the whole run
    exchanges = exchanges or max(fewest, 96_000 // (peers * peers) * 80 // max(rows * classes, 80))
    contenders = {**CONTENDERS}
    if flower_python is not None:
        contenders["flower"] = lambda *size: flower(*size, python=flower_python)
    chosen = ["entangled", *(only or [name for name in contenders if name not in ("entangled", "float16", "sparse")])]
    rates = in_turns(
        rounds, {name: lambda name=name: contenders[name](peers, rows, classes, exchanges) for name in chosen}
    )
    figures = {name: round(median(values), 1) for name, values in rates.items()}
    ratios = {f"entangled : {name}": round(ratio(rates["entangled"], rates[name]), 3) for name in chosen[1:]}
    for most in ("polled", "log-off"):  # what nothing on this library can surpass; and we without the log
        others = [name for name in chosen if name in ("bare", "gloo", "ray", "flower")] if most in chosen else []
        ratios |= {f"{most} : {name}": round(ratio(rates[most], rates[name]), 3) for name in others}
    print(json.dumps({"peers": peers, "rows": rows, "classes": classes, "per_second": figures, **ratios}))


if __name__ == "__main__":
    typer.run(main)
