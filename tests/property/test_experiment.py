"""Any valid experiment survives being written and read; anything else is refused, never a crash."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from entangled.alignment import Layout
from entangled.errors import ExperimentError
from entangled.experiment import Experiment, parse
from entangled.experiment_file import dumps, loads
from entangled.schedule import weight_at
from tests.support import raised

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
WEIGHTS = st.floats(0, 1e30)
POSITIVE = st.floats(1e-30, 1e30)
PER = st.sampled_from(["epoch", "step"])


@st.composite
def piecewise(draw: st.DrawFn, epochs: int) -> dict[str, Any]:
    per = draw(PER)
    last = epochs - 1 if per == "epoch" else 10**6
    boundaries = draw(st.lists(st.integers(1, last), max_size=4, unique=True)) if last >= 1 else []
    values = draw(st.lists(WEIGHTS, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    return {"schedule": "piecewise", "boundaries": sorted(boundaries), "values": values, "per": per}


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    epochs = draw(st.integers(1, 10_000))
    ramp = {"start": WEIGHTS, "end": WEIGHTS, "per": PER}
    weight = st.one_of(
        st.fixed_dictionaries({"schedule": st.just("constant"), "value": WEIGHTS}),
        st.fixed_dictionaries({"schedule": st.sampled_from(["linear", "cosine"]), **ramp}),
        st.fixed_dictionaries({"schedule": st.just("exponential"), "start": POSITIVE, "end": POSITIVE, "per": PER}),
        piecewise(epochs),
    )
    optimizer = st.fixed_dictionaries(
        {"name": TEXTS, "learning_rate": st.floats(0, 1e3, exclude_min=True)},
        optional={"beta_1": st.floats(0, 1), "nesterov": st.booleans(), "clipnorm": st.integers(1, 5)},
    )
    peer = st.fixed_dictionaries(
        {"model": TEXTS},
        optional={
            "optimizer": optimizer,
            "device": st.sampled_from(["auto", "cpu", "gpu", "gpu:3"]),
            "threads": st.integers(0, 64),
        },
    )
    kept = draw(st.sampled_from([{}, {"log": "full"}, {"log": "sampled", "log_every": 7}, {"log": "statistics"}]))
    exchange = st.fixed_dictionaries(
        {"data": TEXTS.filter(bool), **{name: st.just(value) for name, value in kept.items()}},
        optional={
            "shuffle": st.one_of(
                st.sampled_from(["full", "none"]), st.fixed_dictionaries({"buffer": st.integers(1, 10**6)})
            ),
            "direction": st.sampled_from(["self_other", "other_self"]),
            "weight": weight,
            "patience": st.floats(0, 1e6, exclude_min=True),
        },
    )
    values = {
        "name": draw(NAMES),
        "description": draw(TEXTS),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "epochs": epochs,
        "batch_size": draw(st.integers(1, 10**6)),
        "exchange": draw(exchange),
        "peers": draw(st.dictionaries(NAMES, peer, min_size=2, max_size=5)),
    }
    return parse(values, "generated")


@given(experiments())
def test_any_experiment_survives_being_written_and_read(value: Experiment) -> None:
    text = dumps(value)
    back = loads(text, "written")
    assert back == value
    assert back.peer_names == value.peer_names  # the order counts
    assert dumps(back) == text


@given(experiments(), st.integers(1, 10**6), st.data())
def test_guarantee_5_every_weight_of_every_experiment_is_a_float32(value: Experiment, samples: int, data) -> None:
    layout: Layout = value.layout(samples)
    position = layout.position(data.draw(st.integers(0, layout.positions - 1)))
    weight = np.float32(weight_at(value.exchange.weight, position, layout))
    assert np.isfinite(weight)
    assert weight >= 0


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "epochs", "batch_size", "exchange", "peers", "seed", "exchange.weight", "peers.a"])


@given(st.dictionaries(KEYS, JUNK, max_size=5))
def test_junk_in_the_place_of_values_is_refused_and_nothing_worse(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "name": "x",
        "epochs": 1,
        "batch_size": 1,
        "exchange": {"data": "mnist"},
        "peers": {"a": {"model": "cnn"}, "b": {"model": "mlp"}},
    }
    for key, value in sorted(changes.items()):
        table, _, inner = key.partition(".")
        if not inner:
            values[table] = value
        elif isinstance(values[table], dict):
            values[table] = values[table] | {inner: value}
    error = raised(ExperimentError, parse, values, "junk")
    assert error is None or str(error).startswith("junk: ")


@given(st.text(string.printable, max_size=80), st.lists(st.text(string.printable, max_size=30), max_size=3))
def test_any_text_is_an_experiment_or_refused(text: str, overrides: list[str]) -> None:
    error = raised(ExperimentError, loads, text, "junk", overrides)
    assert error is None or error.message


@given(experiments(), st.text(string.ascii_lowercase, min_size=1, max_size=12))
def test_an_unknown_key_is_always_refused(value: Experiment, key: str) -> None:
    values = value.model_dump(mode="json")
    for table in (values, values["exchange"], values["exchange"]["weight"], next(iter(values["peers"].values()))):
        if key not in table and key != "ray":  # which is known, and not in the dump
            table[key] = 1
            assert f"{key}` is not known here" in str(raised(ExperimentError, parse, values, "x"))
            del table[key]
