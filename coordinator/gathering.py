"""Which samples all peers have, where each has its own features of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from entangled.alignment import SampleIds
from entangled.errors import AlignmentError, MembershipError
from entangled.views import shown


class Gathering:
    """Hears of every peer which samples it has, and then knows those that all have.

    Args:
        peers: the experiment's, in order.
        common: what was agreed on before the coordinator was started again.
    """

    def __init__(self, peers: Sequence[str], common: SampleIds | None = None) -> None:
        self.common = common
        """Ascending; None until every peer has spoken."""
        self._peers = peers
        self._held: dict[str, SampleIds] = {}

    @property
    def waited_for(self) -> list[str]:
        """The peers that have not said yet what they have."""
        return [] if self.common is not None else [name for name in self._peers if name not in self._held]

    def hold(self, peer: str, ids: SampleIds) -> list[str]:
        """Take in which samples a peer has; what it says again before all have spoken takes the place of the first.

        Returns:
            For people, who lacks which samples that others have; once, when all have spoken.

        Raises:
            MembershipError: there is no such peer.
            AlignmentError: an id stands twice; it lacks a sample that was agreed on; or no sample is everybody's.
        """
        if peer not in self._peers:
            raise MembershipError("no such peer in this experiment", expected=" or ".join(self._peers), got=peer)
        unique = np.unique(ids)
        if len(unique) < len(ids):
            raise AlignmentError(f"peer {peer} has a sample id twice")
        if self.common is not None:
            lacking = np.setdiff1d(self.common, unique, assume_unique=True)
            if len(lacking):
                raise AlignmentError(f"peer {peer} lacks samples that all peers had", got=f"no {shown(lacking)}")
            return []
        self._held[peer] = unique
        if self.waited_for:
            return []
        everybody = [self._held[name] for name in self._peers]
        common = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), everybody)
        if not len(common):
            del self._held[peer]
            raise AlignmentError("no sample is one that every peer has", got=f"peers {', '.join(self._peers)}")
        self.common = common
        every = reduce(np.union1d, everybody)
        lacking_by_peer = {name: np.setdiff1d(every, held) for name, held in self._held.items()}
        self._held.clear()
        return [
            f"peer {name} lacks {shown(lacking)}: left out for all"
            for name, lacking in lacking_by_peer.items()
            if len(lacking)
        ]
