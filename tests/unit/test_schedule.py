"""λ as a function of position: formulae, boundaries, and what is refused (guarantee 5 rests on it)."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from entangled.alignment import Layout, Position
from entangled.schedule import Schedule, weight_at

LAYOUT = Layout(samples=70, batch_size=8, epochs=5)
READ = TypeAdapter(Schedule)


def schedule(name: str, **values):
    return READ.validate_python({"schedule": name, **values})


def test_the_notebooks_weight_is_the_linear_schedule() -> None:
    layout = Layout(samples=60_000, batch_size=8, epochs=30)
    linear = schedule("linear", end=0.05)
    for epoch in range(30):
        for step in (0, 1, layout.steps_per_epoch - 1):
            assert weight_at(linear, Position(epoch, step), layout) == epoch / 30 * 0.05


FORMULAE = [
    (schedule("constant", value=0.3), lambda f: 0.3),
    (schedule("linear", start=0.2, end=0.6), lambda f: 0.2 + 0.4 * f),
    (schedule("linear", start=0.6, end=0.2), lambda f: 0.6 - 0.4 * f),
    (schedule("cosine", start=0.1, end=0.5), lambda f: 0.3 - 0.2 * math.cos(math.pi * f)),
    (schedule("exponential", start=0.01, end=0.5), lambda f: math.exp((1 - f) * math.log(0.01) + f * math.log(0.5))),
]


@pytest.mark.parametrize(("value", "formula"), FORMULAE, ids=lambda v: getattr(v, "schedule", ""))
@pytest.mark.parametrize("per", ["epoch", "step"])
def test_every_formula_at_every_position(value, formula, per: str) -> None:
    if value.schedule != "constant":
        value = value.model_copy(update={"per": per})
    for index in range(LAYOUT.positions):
        position = LAYOUT.position(index)
        fraction = position.epoch / LAYOUT.epochs if per == "epoch" else index / LAYOUT.positions
        assert weight_at(value, position, LAYOUT) == pytest.approx(formula(fraction), abs=1e-12)


@pytest.mark.parametrize("value", [value for value, _ in FORMULAE[1:]], ids=lambda v: v.schedule)
def test_a_schedule_begins_at_start_and_never_quite_reaches_end(value) -> None:
    weights = [weight_at(value, Position(epoch, 0), LAYOUT) for epoch in range(LAYOUT.epochs)]
    assert weights[0] == pytest.approx(value.start)
    assert sorted(weights, reverse=value.start > value.end) == weights
    assert abs(weights[-1] - value.end) > 1e-3


def test_a_piecewise_schedule_changes_exactly_at_its_boundaries() -> None:
    value = schedule("piecewise", boundaries=[1, 3], values=[0.0, 0.1, 0.2])
    weights = [weight_at(value, Position(epoch, 8), LAYOUT) for epoch in range(5)]
    assert weights == [0.0, 0.1, 0.1, 0.2, 0.2]
    by_step = schedule("piecewise", boundaries=[10], values=[0.0, 0.1], per="step")
    assert weight_at(by_step, Position(1, 0), LAYOUT) == 0.0  # index 9
    assert weight_at(by_step, Position(1, 1), LAYOUT) == 0.1


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("constant", {"value": -0.1}, "greater than or equal to 0"),
        ("constant", {"value": math.nan}, "finite"),
        ("linear", {"end": math.inf}, "finite"),
        ("linear", {"end": 1e300}, "less than or equal to"),  # λ travels as float32
        ("linear", {"end": 0.1, "per": "batch"}, "'epoch' or 'step'"),
        ("exponential", {"start": 0.0, "end": 1.0}, "greater than"),
        ("exponential", {"start": 1e-300, "end": 1.0}, "greater than"),
        ("piecewise", {"boundaries": [1], "values": [0.1]}, "1 boundaries need 2 values"),
        ("piecewise", {"boundaries": [2, 2], "values": [0, 1, 2]}, "must increase"),
        ("piecewise", {"boundaries": [0], "values": [0, 1]}, "greater than 0"),
        ("linear", {"end": 0.1, "begin": 0.0}, "Extra inputs"),
        ("stairs", {}, "does not match any of the expected tags"),
    ],
)
def test_a_bad_schedule_is_refused_at_construction(name: str, values: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        schedule(name, **values)
