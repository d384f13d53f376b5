"""What the first peer of a run must bring: its data set becomes the run's."""

from __future__ import annotations

import numpy as np

from entangled.alignment import Fingerprint, fingerprint
from entangled.errors import AlignmentError
from entangled.experiment import Experiment

MAX_SAMPLES = 2**27
"""Of one data set: an epoch's order is held in memory, 8 bytes a sample."""


def check_first(announced: Fingerprint, experiment: Experiment) -> None:
    """Raise AlignmentError unless a run of `experiment` can be about the data set that is `announced`."""
    if announced.samples > MAX_SAMPLES:
        raise AlignmentError(
            "the data set has too many samples", expected=f"at most {MAX_SAMPLES}", got=str(announced.samples)
        )
    if announced.classes < 2:
        raise AlignmentError("the data set needs at least two classes", got=str(announced))
    ids = np.arange(announced.samples, dtype=np.int64)
    if announced.samples == 0 or fingerprint(ids, announced.classes).ids_digest != announced.ids_digest:
        raise AlignmentError("the sample ids must be 0, 1, … in the data set's order", got=str(announced) or "nothing")
    for name, peer in experiment.peers.items():
        if max(peer.coverage or (), default=0) >= announced.classes:
            raise AlignmentError(
                f"peers.{name} announces a class that the data set does not have",
                expected=f"0 … {announced.classes - 1}",
                got=str(max(peer.coverage or ())),
            )
