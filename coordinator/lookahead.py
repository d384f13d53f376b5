"""How far peers look ahead where the experiment leaves it to be decided (`exchange.lookahead = "auto"`)."""

from __future__ import annotations

from entangled.experiment import MAX_LOOKAHEAD

HIDDEN = 0.05
"""A round trip that is no more than this share of a step costs nothing worth hiding."""


def hiding(step_us: int, round_trip_us: int) -> int:
    """The smallest look-ahead that hides a round trip behind the steps of the slowest peer, and one step more.

    The answer waits for whoever of the others is late, and is worked on before and after it is on its way. A look-ahead
    that is just long enough for the way alone would wait at every step for that.

    >>> hiding(step_us=10_000, round_trip_us=300), hiding(10_000, 25_000)
    (0, 4)
    """
    if step_us == 0 or round_trip_us <= HIDDEN * step_us:  # nobody knows what a step takes, or it is not worth it
        return 0
    return min(MAX_LOOKAHEAD, -(-round_trip_us // step_us) + 1)
