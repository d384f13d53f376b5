"""The coordinator's memory for a short run and a long one: the session and the log's writer at full speed, no network.

    python -m benchmarks.memory [--exchanges 10000 --exchanges 1000000]

Two peers, batches of one sample of ten classes; each length in a process of its own, of which the highest resident set
counts.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.measuring import Group
from coordinator.events import Joined, PredictionArrived, Record, Synced
from coordinator.recorder import Recorder
from coordinator.session import Session
from entangled import PROTOCOL_VERSION, allocator
from entangled.alignment import batch_digest, fingerprint
from entangled.experiment import parse

SAMPLES, CLASSES = 1_000, 10


def drive(exchanges: int, folder: Path) -> dict[str, float]:
    """Exchange so often, as fast as the disk takes it."""
    experiment = parse(
        {
            "name": "memory",
            "epochs": -(-exchanges // SAMPLES),
            "batch_size": 1,
            "exchange": {"data": "mnist", "shuffle": "full"},
            "peers": {name: {"model": "mlp"} for name in "ab"},
        },
        "memory",
    )
    synced = threading.Condition()
    durable = 0

    def on_durable(complete: int) -> None:
        nonlocal durable
        with synced:
            durable = complete
            synced.notify()

    recorder = Recorder(folder, experiment, on_durable, lambda error: print(error, file=sys.stderr))
    session, began = Session(experiment, 0.0), time.perf_counter()
    data = fingerprint(np.arange(SAMPLES), CLASSES)
    for number, name in enumerate("ab"):
        session.handle(Joined(number, name, name, "here", PROTOCOL_VERSION, data), 0.0)
    random = np.random.default_rng(0).dirichlet(np.ones(CLASSES), (64, 1)).astype(np.float32)
    layout = experiment.layout(SAMPLES)
    for index in range(exchanges):
        position = layout.position(index)
        digest = batch_digest(position, layout.batch(session.order(position.epoch), position.step))
        for number in (0, 1):
            event = PredictionArrived([number], position, digest, [random[(index + number) % 64]], [100], index)
            for effect in session.handle(event, 0.0):
                if isinstance(effect, Record):
                    recorder.add(effect.exchange)
        if session.complete - durable > 256:  # what a peer that waits for its answer does
            with synced:
                synced.wait_for(lambda: session.complete - durable < 128)
            session.handle(Synced(durable), 0.0)
    rate = exchanges / (time.perf_counter() - began)
    recorder.close(finished=False)
    return {
        "exchanges": exchanges,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "per_second": rate,
    }


def measure(exchanges: int) -> dict[str, float]:
    """`drive`, in a process of its own."""
    with Group() as group:
        process = group.start("-m", "benchmarks.memory", "--child", str(exchanges))
        output, errors = process.communicate(timeout=3600)
        if process.returncode:
            raise RuntimeError(errors[-2000:])
        return json.loads(output.splitlines()[-1])


def main(
    exchanges: Annotated[list[int] | None, typer.Option(help="Lengths to compare.")] = None,
    child: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the highest resident set of each length, and the ratio of the last to the first."""
    if child is not None:
        allocator.keep_freed()  # as the coordinator does
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            print(json.dumps(drive(child, Path(folder))))
        return
    found = [measure(length) for length in exchanges or [10_000, 1_000_000]]
    print(json.dumps({"runs": found, "ratio": round(found[-1]["MiB"] / found[0]["MiB"], 3)}))


if __name__ == "__main__":
    typer.run(main)
