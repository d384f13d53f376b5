"""λ, the weight of the KL term, as a function of position.

A schedule counts in epochs (`per = "epoch"`: constant within an epoch) or in steps (`per = "step"`). With t the number
of units done and n the units in the whole run, t runs over 0, 1, … n - 1, so a schedule from `start` to `end` never
quite reaches `end`: that is the notebook's rule, `λ(epoch) = epoch / epochs · 0.05`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from entangled.alignment import Layout, Position

# λ travels and is logged as float32; these bounds leave room around it.
Weight = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
PositiveWeight = Annotated[float, Field(ge=1e-30, le=1e30, allow_inf_nan=False)]


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(_Schedule):
    """λ(t) = value."""

    schedule: Literal["constant"]
    value: Weight

    def at(self, t: int, n: int) -> float:
        """λ after `t` of `n` units.

        >>> Constant(schedule="constant", value=0.05).at(3, 30)
        0.05
        """
        return self.value


class Linear(_Schedule):
    """λ(t) = start + t / n · (end - start)."""

    schedule: Literal["linear"]
    start: Weight = 0.0
    end: Weight
    per: Literal["epoch", "step"] = "epoch"

    def at(self, t: int, n: int) -> float:
        """λ after `t` of `n` units.

        >>> round(Linear(schedule="linear", end=0.05).at(29, 30), 6)
        0.048333
        """
        return self.start + (t / n) * (self.end - self.start)


class Cosine(_Schedule):
    """λ(t) = start + (1 - cos(π t / n)) / 2 · (end - start): slow at both ends."""

    schedule: Literal["cosine"]
    start: Weight = 0.0
    end: Weight
    per: Literal["epoch", "step"] = "epoch"

    def at(self, t: int, n: int) -> float:
        """λ after `t` of `n` units.

        >>> round(Cosine(schedule="cosine", end=1.0).at(15, 30), 6)
        0.5
        """
        return self.start + (1 - math.cos(math.pi * t / n)) / 2 * (self.end - self.start)


class Exponential(_Schedule):
    """λ(t) = start · (end / start)^(t / n)."""

    schedule: Literal["exponential"]
    start: PositiveWeight
    end: PositiveWeight
    per: Literal["epoch", "step"] = "epoch"

    def at(self, t: int, n: int) -> float:
        """λ after `t` of `n` units.

        >>> round(Exponential(schedule="exponential", start=0.01, end=1.0).at(15, 30), 6)
        0.1
        """
        return self.start * (self.end / self.start) ** (t / n)


class Piecewise(_Schedule):
    """λ(t) = values[i] for boundaries[i - 1] ≤ t < boundaries[i]."""

    schedule: Literal["piecewise"]
    boundaries: tuple[Annotated[int, Field(gt=0)], ...]
    values: tuple[Weight, ...]
    per: Literal["epoch", "step"] = "epoch"

    @model_validator(mode="after")
    def _shape(self) -> Piecewise:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(f"{len(self.boundaries)} boundaries need {len(self.boundaries) + 1} values")
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise ValueError("boundaries must increase")
        return self

    def at(self, t: int, n: int) -> float:
        """λ after `t` of `n` units.

        >>> Piecewise(schedule="piecewise", boundaries=(10, 20), values=(0.0, 0.1, 0.2)).at(10, 30)
        0.1
        """
        return self.values[sum(t >= boundary for boundary in self.boundaries)]


Schedule = Annotated[Constant | Linear | Cosine | Exponential | Piecewise, Field(discriminator="schedule")]


def weight_at(schedule: Schedule, position: Position, layout: Layout) -> float:
    """λ in force at a position of a run.

    >>> weight_at(Linear(schedule="linear", end=1.0), Position(1, 7), Layout(samples=80, batch_size=8, epochs=2))
    0.5
    """
    if isinstance(schedule, Constant):
        return schedule.value
    if schedule.per == "epoch":
        return schedule.at(position.epoch, layout.epochs)
    return schedule.at(layout.index(position), layout.positions)
