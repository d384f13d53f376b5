"""Checkpoints: everything a peer needs to go on as if it had never stopped, in files that are whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entangled import atomic, faults
from entangled.distribution import Probabilities
from entangled.errors import LogError
from entangled.participation.tree import Tree, flatten, unflatten

KEPT = 2
"""Checkpoints on disk: the newest, and one before it."""

_DIGEST = 32


@dataclass(frozen=True)
class Checkpoint:
    """A peer's state between two batches."""

    run_id: str
    """Of the run it belongs to."""
    index: int
    """Of the next batch to train on."""
    reported: dict[str, float]
    """The scalars that were reported last."""
    state: Tree
    """The training loop's own."""
    in_flight: Sequence[Probabilities] = ()
    """What was published for the batches from `index` on, with the weights of earlier steps."""


def save(folder: Path, role: str, checkpoint: Checkpoint) -> int:
    """Write a checkpoint to `folder` and drop all but the newest `KEPT`.

    Returns:
        The index that a peer falls back to at most, should the newest be damaged.

    Raises:
        DataError: the state holds something that cannot be kept.
    """
    atomic.make_folder(folder)
    structure, arrays = flatten(checkpoint.state)
    arrays += checkpoint.in_flight
    header = {
        "run_id": checkpoint.run_id,
        "index": checkpoint.index,
        "reported": checkpoint.reported,
        "state": structure,
        "in_flight": len(checkpoint.in_flight),
    }
    buffer = io.BytesIO()
    named: dict[str, Any] = {f"v{i}": array for i, array in enumerate(arrays)}
    np.savez(buffer, header=np.array(json.dumps(header)), **named)
    content = buffer.getvalue()

    def write(file: Path) -> None:
        file.write_bytes(hashlib.blake2b(content, digest_size=_DIGEST).digest() + content)
        faults.point(role, "in checkpoint")

    atomic.write(folder / f"{checkpoint.index:012d}.checkpoint", write)
    found = _newest_first(folder)
    faults.point(role, "between rename and unlink")
    for old in found[KEPT:]:
        old.unlink()
    return int(found[KEPT - 1].stem) if len(found) >= KEPT else 0


def load(folder: Path, run_id: str, complete: int) -> Checkpoint | None:
    """The newest whole checkpoint in `folder` that is not ahead of the run, or None. Those ahead of it are removed.

    Args:
        folder: of the checkpoints.
        run_id: of the run.
        complete: exchanges that the run has; a log that lost its end to a power cut may have fewer than a checkpoint.

    Raises:
        LogError: it is of another run.
    """
    for path in _newest_first(folder):
        stored = path.read_bytes()
        digest, content = stored[:_DIGEST], stored[_DIGEST:]
        if hashlib.blake2b(content, digest_size=_DIGEST).digest() != digest:
            continue
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            values = [arrays[f"v{i}"] for i in range(len(arrays.files) - 1)]
        if header["run_id"] != run_id:
            raise LogError(
                f"{folder} holds another run's checkpoints: choose another folder",
                expected=run_id,
                got=header["run_id"],
            )
        if header["index"] <= complete:
            state, first = unflatten(header["state"], values), len(values) - header["in_flight"]
            return Checkpoint(run_id, header["index"], header["reported"], state, values[first:])
        path.unlink()  # what it knows is trained on again; were it kept, it would take the place of what comes now
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*.checkpoint") if not p.name.startswith(".")), reverse=True)
