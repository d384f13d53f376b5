"""Figures of several seeds: means with their 95 % intervals, and differences between settings seed by seed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, for 1, 2, … degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean and how far the 95 % interval for it reaches to each side: not at all known (nan) from one value alone."""

    mean: float
    reach: float
    count: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % interval by Student's t.

    Args:
        values: one or more.

    >>> found = interval([0.80, 0.82, 0.84])
    >>> round(found.mean, 3), round(found.reach, 3)
    (0.82, 0.05)
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, 1)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    return Interval(mean, _student(count - 1) * math.sqrt(variance / count), count)


def _student(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _NORMAL + (_NORMAL**3 + _NORMAL) / (4 * freedom) + 3.0 / freedom**2  # right to three decimals from 16 on


def paired(ones: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """The mean difference `other - one` over the seeds that both have; None if there are none.

    Pairing takes out what the seed does to both: initial weights, who got which samples, sample orders.

    >>> paired({0: 0.50, 1: 0.60}, {0: 0.75, 1: 0.85, 2: 0.1})
    Interval(mean=0.25, reach=0.0, count=2)
    """
    seeds = [seed for seed in ones if seed in others]
    return interval([others[seed] - ones[seed] for seed in seeds]) if seeds else None


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in nothing but the seed."""

    label: str
    runs: str
    """The run folders, as a person would name them together."""
    figures: Mapping[int, Mapping[str, Mapping[str, float]]]
    """By seed, then by peer: final metrics by name."""

    def values(self, peer: str, metric: str) -> dict[int, float]:
        """One peer's final metric by seed, where the run has it."""
        found = {seed: peers.get(peer, {}).get(metric) for seed, peers in self.figures.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def rows(settings: Sequence[Setting], metric: str) -> list[dict[str, object]]:
    """A row per setting and peer: the metric's mean and interval, and the paired difference from the first setting."""
    table: list[dict[str, object]] = []
    for setting in settings:
        peers = dict.fromkeys(peer for figures in setting.figures.values() for peer in figures)
        for peer in peers:
            values = setting.values(peer, metric)
            if not values:
                continue
            change = paired(settings[0].values(peer, metric), values) if setting is not settings[0] else None
            table.append(
                {
                    "setting": setting.label,
                    "peer": peer,
                    "metric": metric,
                    "seeds": sorted(values),
                    **_fields("", interval(list(values.values()))),
                    **_fields("difference_", change),
                    "runs": setting.runs,
                }
            )
    return table


def _fields(prefix: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {f"{prefix}mean": None, f"{prefix}reach": None}
    return {f"{prefix}mean": found.mean, f"{prefix}reach": None if math.isnan(found.reach) else found.reach}


def shown(mean: object, reach: object, *, share: bool, sign: bool = False) -> str:
    """A mean with its interval for people; shares of 1 in percent.

    >>> shown(0.9012, 0.0034, share=True), shown(0.25, None, share=True, sign=True), shown(None, None, share=True)
    ('90.12 ± 0.34', '+25.00', '–')
    """
    if not isinstance(mean, float):
        return "–"
    scale, places = (100.0, 2) if share else (1.0, 4)
    text = f"{mean * scale:{'+' if sign else ''}.{places}f}"
    return text if not isinstance(reach, float) else f"{text} ± {reach * scale:.{places}f}"
