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
    target = Look.of(run, data.x, data.y, own, note)
    others = [Look.of(shadow, data.x, data.y, own, note) for shadow in shadows]
    for shadow in shadows:
        if (shadow.contents_digest, shadow.peers) != (run.contents_digest, run.peers):
            raise EntangledError(f"{shadow.folder} has other peers or exchanged samples than {run.folder}")
        if shadow.experiment.seed == run.experiment.seed:
            raise EntangledError(
                f"{shadow.folder} is no shadow of {run.folder}: both have the seed {run.experiment.seed}, so their "
                "peers have learned from the same samples, and the attack would be told what it is to find out"
            )
    return attacks(target, others)


@dataclass(frozen=True)
class Look:
    """What an attacker sees of a run, and what is true.

    Attributes:
        peers: their names.
        y: `(samples,)`, the exchanged samples' labels.
        logits: `(peers, samples)`, of what each peer last gave each sample's own label.
        inside: for each peer, `(samples,)`: whether it has learned from the sample.
        classes: of each peer's private data.
    """

    peers: Sequence[str]
    y: npt.NDArray[np.int64]
    logits: Floats
    inside: Sequence[leakage.Mask]
    classes: Sequence[npt.NDArray[np.int64]]

    @staticmethod
    def of(run: Run, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], own: Mapping[str, str], note: Note) -> Look:
        """Look at a run's log."""
        last = with_predictions(run, blocks(run, note, [run.layout.epochs - 1]), note)
        confidences = leakage.last_confidences(last, y, len(run.peers))
        with samples.users_own():
            private = [private_data.private(run.experiment, peer, run.classes, own.get(peer)) for peer in run.peers]
        return Look.at(run.peers, x, y, confidences, private)

    @staticmethod
    def at(
        peers: Sequence[str],
        x: npt.NDArray[np.float32],
        y: npt.NDArray[np.int64],
        confidences: Floats,
        private: Sequence[Dataset],
    ) -> Look:
        """Look at `(peers, samples)` confidences in the own labels of the exchanged samples `x`."""
        inside = [leakage.members(x, data.x) for data in private]
        return Look(peers, y, leakage.logits(confidences), inside, [np.unique(data.y) for data in private])


def attacks(target: Look, shadows: Sequence[Look]) -> list[Attack]:
    """Every attack on every peer.

    Raises:
        EntangledError: there is nothing to tell apart.
    """
    return [found for place in range(len(target.peers)) for found in _attack(target, shadows, place)]


def _attack(target: Look, shadows: Sequence[Look], place: int) -> list[Attack]:
    peer, inside, scores = target.peers[place], target.inside[place], target.logits[place]
    if not inside.any():
        raise EntangledError(
            f"no exchanged sample is a private one of {peer}, so no prediction is about one. To measure what a query "
            "would give away, let both be drawn from the same samples, e.g. exchange.data and private.data mnist[:2000]"
        )
    # Only among samples of the classes that the peer has, or the attack would be told by the class alone.
    fair = np.isin(target.y, target.classes[place]) & np.isfinite(scores)
    ways = {"loss threshold": scores}
    if shadows:
        ways["LiRA"] = leakage.likelihood_ratios(
            scores, np.stack([s.logits[place] for s in shadows]), np.stack([s.inside[place] for s in shadows])
        )
    found: list[Attack] = []
    for name, score in ways.items():
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
