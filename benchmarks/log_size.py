"""What the exchange log takes on disk, in bytes for each byte of prediction.

    python -m benchmarks.log_size [RUN …] [--exchanges 50]

Of every RUN that is named, and of a made-up one: two peers, 256 samples × 1000 classes, the softmax of random numbers,
which compress as badly as anything a model says. `stream` is the Arrow stream in which an epoch stands until it is
finished, `encoded` its Parquet file before compression, and `on disk` that file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from entangled.alignment import Layout, batch_digest, sample_order
from entangled.distribution import prediction_digest, statistics
from entangled.exchange_log import SCHEMA, Row, genesis, partitions, read_batches
from entangled.log_writer import Writer

ROWS, CLASSES = 256, 1000


def made_up(exchanges: int, *, full: bool) -> Iterator[Row]:
    """The rows of one epoch, of a log that is `full` or loses its predictions."""
    layout, random = Layout(ROWS * exchanges, ROWS, 1), np.random.default_rng(0)
    order = sample_order(np.arange(layout.samples), "full", 0, 0)
    for index in range(exchanges):
        position, ids = layout.position(index), layout.batch(order, index)
        logits = np.exp(random.normal(0, 3, (2, ROWS, CLASSES)))
        predictions = (logits / logits.sum(axis=-1, keepdims=True)).astype(np.float32)
        measured, digest = statistics(predictions), batch_digest(position, ids)
        for peer, own, mine in zip("ab", predictions, measured, strict=True):
            at, shape = 1_700_000_000_000_000 + 9_973 * index, (ROWS, CLASSES)
            said = (shape, own, None, None) if full else (shape, own, prediction_digest(own), mine)
            yield Row(
                position,
                index,
                peer,
                ("a", "b"),
                0.05,
                ids,
                digest,
                *said,
                0,
                at,
                int(random.integers(9999)),
                own.nbytes,
            )


def show(name: str, run: Path) -> None:
    """Print one log's sizes."""
    predicted = encoded = disk = 0
    stream = pa.MockOutputStream()
    with pa.ipc.new_stream(stream, SCHEMA) as writer:
        for _, path in partitions(run):
            disk += path.stat().st_size
            metadata = pq.read_metadata(path)
            encoded += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            for batch in read_batches(path):
                writer.write_batch(batch)
                shapes = (batch.column(name).to_numpy().astype(np.int64) for name in ("rows", "classes"))
                predicted += 4 * int(np.prod(list(shapes), axis=0).sum())
    sizes = "  ".join(f"{size / predicted:9.4f}" for size in (stream.size(), encoded, disk))
    print(f"{name:32}  {predicted:11}  {sizes}")


def main(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Folders of finished runs.")] = None,
    exchanges: Annotated[int, typer.Option(help="Of the made-up run.")] = 50,
) -> None:
    """Measure."""
    print(f"{'log':32}  {'predictions':>11}  {'stream':>9}  {'encoded':>9}  {'on disk':>9}")
    for run in runs or []:
        show(run.name, run)
    keeps = {"full": lambda _: True, "sampled": lambda index: index % 10 == 0, "statistics": lambda _: False}
    with tempfile.TemporaryDirectory() as folder:
        for mode, kept in keeps.items():
            log = Writer(Path(folder) / mode, genesis(""))
            for row in made_up(exchanges, full=mode == "full"):
                log.append(row)
                log.flush()
            log.finish_epoch()
            if mode != "full":
                log.thin(exchanges, kept)
            every = ", log_every = 10" if mode == "sampled" else ""
            show(f"{ROWS}×{CLASSES}, {mode}{every}", Path(folder) / mode)


if __name__ == "__main__":
    typer.run(main)
