"""What a peer gets from an exchange, whether it was one of its members or not.

An exchange's *members* are the peers whose predictions are in it: all of the experiment's, or only some where it says
`on_missing = "continue"`. A peer that comes back and catches up gets what it missed from those who were there.
"""

from __future__ import annotations

from collections.abc import Sequence

from entangled.distribution import Combination, Probabilities, combined, soft_targets


def soft_target(
    peer: str, members: Sequence[str], predictions: Sequence[Probabilities], combination: Combination
) -> Probabilities:
    """What `peer` is pulled towards.

    Args:
        peer: a member or not.
        members: in the experiment's order.
        predictions: theirs, in the same order, `(rows, classes)` float32 each.
        combination: of the members.

    Returns:
        `(rows, classes)` float32: the other members' predictions, combined; its own for a member that was alone.
    """
    if peer in members:
        return soft_targets(predictions, combination)[members.index(peer)]
    return combined(predictions, combination)


def weight(peer: str, members: Sequence[str], scheduled: float) -> float:
    """λ for `peer`: the schedule's, but 0 for a member that was alone.

    >>> weight("a", ["a", "b"], 0.5), weight("a", ["a"], 0.5), weight("b", ["a"], 0.5)
    (0.5, 0.0, 0.5)
    """
    return 0.0 if list(members) == [peer] else scheduled
