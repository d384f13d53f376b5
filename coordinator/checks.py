"""What a peer says, checked before the session takes any of it in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.roster import Member
from entangled import PROTOCOL_VERSION
from entangled.alignment import Position
from entangled.distribution import Probabilities, check, check_together
from entangled.errors import PredictionError, ProtocolError

MAX_METRICS = 64
"""Names of metrics that a peer may use in all, and characters in each."""


def check_version(version: int) -> None:
    """Raise ProtocolError unless a peer speaks this protocol's version."""
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            "peer and coordinator are of different versions",
            expected=f"protocol {PROTOCOL_VERSION}",
            got=f"protocol {version}",
        )


def check_predictions(
    members: Sequence[Member], position: Position, several: Sequence[Probabilities], rows: int, classes: int
) -> None:
    """Raise PredictionError, with the first peer's name whose it is, unless each is a distribution of that shape.

    Args:
        members: who predicts.
        position: of the batch.
        several: the probabilities of each, float32.
        rows: samples in the batch.
        classes: number of classes.
    """
    try:
        if len(several) == 1:
            check(several[0], rows, classes)
        else:
            check_together(several, rows, classes)
    except PredictionError:
        for member, probabilities in zip(members, several, strict=True):
            _check_one(member, position, probabilities, rows, classes)
        raise


def _check_one(member: Member, position: Position, probabilities: Probabilities, rows: int, classes: int) -> None:
    try:
        check(probabilities, rows, classes)
    except PredictionError as error:
        where = f"peer {member.name}'s prediction for {position}: {error.message}"
        raise PredictionError(where, expected=error.expected, got=error.got) from None


def check_metrics(member: Member, said: Mapping[str, float], values: Mapping[str, float]) -> None:
    """Raise ProtocolError if a peer has too many metrics, or names that are none.

    Args:
        member: whose they are.
        said: what it says now.
        values: these, and all that it has said before.
    """
    if len(values) > MAX_METRICS or any(len(n) > MAX_METRICS or not n.isprintable() for n in said):
        raise ProtocolError(
            f"peer {member.name} sends too many metrics",
            expected=f"at most {MAX_METRICS} names of {MAX_METRICS} printable characters",
            got=str(len(values)),
        )
