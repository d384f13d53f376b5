"""Models by name: the notebook's two, a user's own, and what is refused."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from entangled.errors import DataError
from peer.models import build

HERE = __name__


# What `module:function` finds; the tests name this module.
def own(input_shape: tuple[int, ...], classes: int):
    return keras.Sequential(
        [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(classes, activation="softmax")]
    )


def too_wide(input_shape: tuple[int, ...], classes: int):
    return own(input_shape, classes + 1)


def no_batch(input_shape: tuple[int, ...], classes: int):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(classes, activation="softmax")])


def test_the_notebooks_models_layer_by_layer() -> None:
    names = {
        name: [type(layer).__name__ for layer in build(name, (28, 28), 10, 0).layers if "shape" not in layer.name]
        for name in ("cnn", "mlp")
    }
    assert names == {
        "cnn": ["Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense"],
        "mlp": ["Flatten", "Dense", "Dense", "Dense"],
    }
    convolution = 3 * 3 * 16 + 16
    assert build("cnn", (28, 28), 10, 0).count_params() == convolution + (13 * 13 * 16 + 1) * 32 + (32 + 1) * 10
    assert build("mlp", (28, 28), 10, 0).count_params() == (784 + 1) * 64 + (64 + 1) * 32 + (32 + 1) * 10


@pytest.mark.parametrize("name", ["cnn", "mlp", f"{HERE}:own"])
@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 10), ((12, 9, 3), 4)])
def test_every_model_gives_distributions(name: str, shape: tuple[int, ...], classes: int) -> None:
    p = np.asarray(build(name, shape, classes, 0)(np.ones((5, *shape), np.float32)))
    assert p.shape == (5, classes)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert (p >= 0).all()


@pytest.mark.parametrize("name", ["cnn", "mlp", f"{HERE}:own"])
def test_initial_weights_are_a_function_of_the_seed(name: str) -> None:
    one, again, other = (build(name, (8, 8), 3, seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(v, w) for v, w in zip(one, again, strict=True))
    assert not all(np.array_equal(v, w) for v, w in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rnn", "no such model .*cnn, mlp or module:function; got rnn"),
        ("nowhere:model", "cannot find nowhere:model"),
        (f"{HERE}:nothing", "cannot find .*:nothing"),
        (f"{HERE}:too_wide", r"wrong output .*\(rows, 3\); got \(None, 4\)"),
        (f"{HERE}:no_batch", r"wrong output .*\(rows, 3\); got \(None, 8, 3\)"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build(name, (8, 8), 3, 0)
