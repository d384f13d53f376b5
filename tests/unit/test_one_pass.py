"""One forward pass for the exchanged prediction and the update, where that makes no difference."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest

from entangled.errors import RunFailedError
from entangled.participation.seam import SoftTarget
from peer.learners.keras_learner import same_in_training
from peer.learners.tensorflow_learner import TensorFlowLearner
from peer.loss import EntangledLoss
from peer.models import build
from tests.integration.models import noisy


def nested(*inner: keras.Layer) -> keras.Model:
    start = keras.Input((4,))
    end = keras.Sequential([keras.Input((4,)), *inner])(start)
    return keras.Model(start, keras.layers.Dense(3, "softmax")(end))


class Own(keras.Model):
    def call(self, x: object) -> object:
        return x


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (lambda: build("cnn", (28, 28), 10, 0), True),
        (lambda: build("mlp", (28, 28), 10, 0), True),
        (lambda: nested(keras.layers.Dense(4, "relu"), keras.layers.ReLU()), True),
        (lambda: noisy((28, 28), 10), False),
        (lambda: nested(keras.layers.Dropout(0.5)), False),
        (lambda: nested(keras.layers.BatchNormalization()), False),
        (lambda: nested(keras.layers.GaussianNoise(0.1)), False),
        (lambda: nested(keras.layers.Lambda(lambda x: x)), False),
        (Own, False),
    ],
)
def test_which_models_are_the_same_in_training(model, same: bool) -> None:
    assert same_in_training(model()) is same


def learner(here: bool) -> TensorFlowLearner:
    """One whose graphs run on the calling thread, as with one CPU thread, or on TensorFlow's."""
    one = TensorFlowLearner(build("mlp", (4, 4), 3, 7), keras.optimizers.Adam(0.01), EntangledLoss("self_other"))
    one._here = here
    return one


def variables(one: TensorFlowLearner) -> list[np.ndarray]:
    return [v.value.numpy() for v in (*one.model.variables, *one.optimizer.variables)]


@pytest.mark.parametrize("here", [True, False])
def test_a_step_in_one_pass_is_the_step_in_two_to_the_bit(here: bool) -> None:
    one, two, random = learner(here), learner(here), np.random.default_rng(0)
    for rows in (8, 8, 8, 3):
        x, labels = random.random((rows, 4, 4), np.float32), np.eye(3, dtype=np.float32)[random.integers(0, 3, rows)]
        target = SoftTarget(random.dirichlet(np.ones(3), rows).astype(np.float32), 0.3)
        seen: list[np.ndarray] = []
        loss, right = one.step(x, labels, lambda own, target=target, seen=seen: (seen.append(own.copy()), target)[1])
        assert seen[0].tobytes() == two.predict(x).tobytes()
        assert (loss, right) == two.update(x, labels, target)
    for a, b in zip(variables(one), variables(two), strict=True):
        assert np.array_equal(a, b)


def test_a_graph_runs_on_the_calling_thread_where_nothing_needs_more() -> None:
    seen: list[int] = []

    def exchange(_: np.ndarray) -> SoftTarget:
        seen.append(threading.get_ident())
        return SoftTarget(np.full((2, 3), 1 / 3, np.float32), 0.3)

    for here in (True, False):
        learner(here).step(np.zeros((2, 4, 4), np.float32), np.eye(3, dtype=np.float32)[:2], exchange)
    assert seen[0] == threading.get_ident()
    assert seen[1] != threading.get_ident()


@pytest.mark.parametrize("here", [True, False])
def test_an_exchange_that_fails_says_why_and_leaves_the_weights(here: bool) -> None:
    one = learner(here)
    before = [v.numpy() for v in one.model.trainable_variables]

    def fail(own: np.ndarray) -> SoftTarget:
        raise RunFailedError("peer b failed: no memory left")

    with pytest.raises(RunFailedError, match="no memory left"):
        one.step(np.zeros((2, 4, 4), np.float32), np.eye(3, dtype=np.float32)[:2], fail)
    for a, b in zip(before, one.model.trainable_variables, strict=True):
        assert np.array_equal(a, b.numpy())
