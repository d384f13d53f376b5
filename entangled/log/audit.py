"""Attacks on a run's log, and on those of its shadow runs: `entangled log leakage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entangled import private_data
from entangled.datasets import Dataset
from entangled.distribution import Floats
from entangled.errors import DataError, EntangledError
from entangled.log import leakage, samples
from entangled.log.reader import Note, Run, blocks, with_predictions

SHARE = 0.01
"""Of non-members that an attack may be wrong about, for the true positives that it is judged by."""


@dataclass(frozen=True)
class Attack:
    """How well one attack tells a peer's private samples from others."""

    peer: str
    attack: str
    """`loss threshold` or `LiRA`."""
    members: int
    others: int
    auc: float
    true_positives: float
    """The share of members found with at most `SHARE` of the others taken for members."""


def attack(run: Run, shadows: Sequence[Run], own: Mapping[str, str], note: Note) -> list[Attack]:
    """Attack every peer of a run.

    Args:
        run: the run under attack.
        shadows: runs of the same experiment with other seeds, whose peers have learned from other samples.
        own: by peer, the private data that was given on its own side.
        note: is told what was left out.

    Raises:
        EntangledError: the run has no private data, or none of it is among the exchanged samples; or a shadow has
            other peers or exchanged samples, or the run's own seed.
        DataError: the samples or their labels cannot be had here.
    """
    data = samples.load(run)
    if isinstance(data, Dataset):
        raise EntangledError(
            f"{run.folder} has no private data: every peer has learned from every exchanged sample, and there is "
            "nothing to tell apart"
        )
    if data.y is None:
        raise DataError(f"{run.experiment.exchange.data} has no labels; the attacks need them")
    target = _Look(run, data.x, data.y, own, note)
    others = [_Look(shadow, data.x, data.y, own, note) for shadow in shadows]
    for shadow in shadows:
        if (shadow.contents_digest, shadow.peers) != (run.contents_digest, run.peers):
            raise EntangledError(f"{shadow.folder} has other peers or exchanged samples than {run.folder}")
        if shadow.experiment.seed == run.experiment.seed:
            raise EntangledError(
                f"{shadow.folder} is no shadow of {run.folder}: both have the seed {run.experiment.seed}, so their "
                "peers have learned from the same samples, and the attack would be told what it is to find out"
            )
    return [found for place in range(len(run.peers)) for found in _attack(target, others, place)]


class _Look:
    """What an attacker sees of a run, and what is true."""

    def __init__(
        self, run: Run, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], own: Mapping[str, str], note: Note
    ) -> None:
        self.run, self.y = run, y
        last = with_predictions(run, blocks(run, note, [run.layout.epochs - 1]), note)
        self.logits: Floats = leakage.logits(leakage.last_confidences(last, y, len(run.peers)))
        with samples.users_own():
            self.private = [
                private_data.private(run.experiment, peer, run.classes, own.get(peer)) for peer in run.peers
            ]
        self.inside = [leakage.members(x, data.x) for data in self.private]


def _attack(target: _Look, shadows: Sequence[_Look], place: int) -> list[Attack]:
    peer, inside, scores = target.run.peers[place], target.inside[place], target.logits[place]
    if not inside.any():
        raise EntangledError(
            f"no exchanged sample is a private one of {peer}, so no prediction is about one. To measure what a query "
            "would give away, let both be drawn from the same samples, e.g. exchange.data and private.data mnist[:2000]"
        )
    # Only among samples of the classes that the peer has, or the attack would be told by the class alone.
    fair = np.isin(target.y, np.unique(target.private[place].y)) & np.isfinite(scores)
    attacks = {"loss threshold": scores}
    if shadows:
        attacks["LiRA"] = leakage.likelihood_ratios(
            scores, np.stack([s.logits[place] for s in shadows]), np.stack([s.inside[place] for s in shadows])
        )
    found: list[Attack] = []
    for name, score in attacks.items():
        ins, outs = score[fair & inside], score[fair & ~inside]
        if not len(outs):
            raise EntangledError(f"every exchanged sample of {peer}'s classes is a private one of it")
        found.append(
            Attack(
                peer,
                name,
                len(ins),
                len(outs),
                leakage.auc(ins, outs),
                leakage.true_positives(ins, outs, SHARE),
            )
        )
    return found
