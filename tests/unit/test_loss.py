"""The entangled loss against its formula, and the step of a peer against the gradient worked out by hand."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from entangled.participation.seam import SoftTarget
from peer.learners.tensorflow_learner import TensorFlowLearner
from peer.loss import EntangledLoss
from peer.trainer import evaluate

ROWS, CLASSES = 6, 4
RANDOM = np.random.default_rng(0)
LABELS = np.eye(CLASSES, dtype=np.float32)[RANDOM.integers(0, CLASSES, ROWS)]
OWN, OTHERS = RANDOM.dirichlet(np.ones(CLASSES), (2, ROWS)).astype(np.float32)
DIRECTIONS = ["self_other", "other_self"]


def formula(direction: str, labels: np.ndarray, own: np.ndarray, others: np.ndarray, weight: float) -> float:
    p, q = (np.clip(v.astype(np.float64), 1e-7, 1) for v in (own, others))
    cross_entropy = -(labels * np.log(p)).sum(axis=1).mean()
    if direction == "other_self":
        p, q = q, p
    return cross_entropy + weight * (p * np.log(p / q)).sum(axis=1).mean()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_the_loss_is_its_formula(direction, weight: float) -> None:
    loss = float(EntangledLoss(direction)(LABELS, OWN, OTHERS, weight))
    assert loss == pytest.approx(formula(direction, LABELS, OWN, OTHERS, weight), rel=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_certainty_is_clipped_and_not_infinite(direction) -> None:
    own = np.eye(CLASSES, dtype=np.float32)[np.arange(ROWS) % CLASSES]
    others = np.roll(own, 1, axis=1)
    loss = float(EntangledLoss(direction)(others, own, others, 0.5))
    assert loss == pytest.approx(formula(direction, others, own, others, 0.5), rel=1e-4)
    assert 1 < loss < 100


def test_the_directions_differ_and_agreeing_costs_nothing() -> None:
    one, other = (EntangledLoss(d) for d in ("self_other", "other_self"))
    assert abs(float(one(LABELS, OWN, OTHERS, 1.0)) - float(other(LABELS, OWN, OTHERS, 1.0))) > 0.01
    alone = formula("self_other", LABELS, OWN, OWN, 0.0)
    for loss in (one, other):
        assert float(loss(LABELS, OWN, OWN, 1.0)) == pytest.approx(alone, rel=1e-5)


def linear_model(seed: int):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(CLASSES, activation="softmax", use_bias=False)])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_peers_step_follows_the_gradient_through_its_own_prediction_only(direction) -> None:
    """By the logits: dCE = p - y; dKL(p ‖ q) = p (log(p / q) - KL); dKL(q ‖ p) = p - q. The other, q, is a constant."""
    weight, rate = 0.7, 0.5
    model = linear_model(1)
    x = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
    before = model.get_weights()[0].astype(np.float64)
    p = np.exp(x @ before)
    p /= p.sum(axis=1, keepdims=True)
    if direction == "self_other":
        log_ratio = np.log(p / OTHERS)
        pull = p * (log_ratio - (p * log_ratio).sum(axis=1, keepdims=True))
    else:
        pull = p - OTHERS
    expected = before - rate * x.T @ (p - LABELS + weight * pull) / ROWS

    learner = TensorFlowLearner(model, keras.optimizers.SGD(rate), EntangledLoss(direction))
    np.testing.assert_allclose(learner.predict(x), p, atol=1e-6)
    loss, correct = learner.update(x, LABELS, SoftTarget(OTHERS, weight))
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-6)
    assert loss == pytest.approx(formula(direction, LABELS, p, OTHERS, weight), rel=1e-5)
    assert correct == (p.argmax(axis=1) == LABELS.argmax(axis=1)).sum()


def test_the_exchanged_prediction_is_not_that_of_training() -> None:
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    learner = TensorFlowLearner(model, keras.optimizers.SGD(0.0), EntangledLoss("self_other"))
    x = RANDOM.normal(5, 2, size=(ROWS, 3)).astype(np.float32)
    np.testing.assert_allclose(learner.predict(x), model(x, training=False), atol=1e-6)
    assert np.array_equal(learner.predict(x), learner.predict(x))
    moving_mean = model.layers[0].moving_mean.numpy().copy()
    learner.update(x, LABELS, SoftTarget(OTHERS, 0.1))
    assert not np.array_equal(moving_mean, model.layers[0].moving_mean.numpy())


def test_a_models_own_regularisation_is_trained_but_not_reported() -> None:
    plain, penalised = (
        keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(CLASSES, activation="softmax", kernel_regularizer=regularizer)]
        )
        for regularizer in (None, keras.regularizers.L2(1.0))
    )
    penalised.set_weights(plain.get_weights())
    x = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
    before = plain.get_weights()[0]
    learners = [
        TensorFlowLearner(m, keras.optimizers.SGD(0.1), EntangledLoss("self_other")) for m in (plain, penalised)
    ]
    losses = [learner.update(x, LABELS, SoftTarget(OTHERS, 0.1))[0] for learner in learners]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    step = plain.get_weights()[0] - penalised.get_weights()[0]
    np.testing.assert_allclose(step, 0.1 * 2.0 * before, atol=1e-5)


def test_evaluation_counts_every_sample_once() -> None:
    model = linear_model(2)
    learner = TensorFlowLearner(model, keras.optimizers.SGD(0.1), EntangledLoss("self_other"))
    x, y = RANDOM.normal(size=(25, 3)).astype(np.float32), RANDOM.integers(0, CLASSES, 25)
    accuracy, loss, _ = evaluate(learner, x, y, size=10)
    p = np.asarray(model(x), np.float64)
    assert accuracy == pytest.approx((p.argmax(axis=1) == y).mean())
    assert loss == pytest.approx(-np.log(p[np.arange(25), y]).mean(), rel=1e-5)
