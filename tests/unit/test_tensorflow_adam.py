"""Adam in fewer operations is Keras' own, to the bit, and stands aside where the optimizer does more."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from peer.learners import tensorflow_adam
from peer.models import build


def trained(model: Any, optimizer: Any, apply: Any, steps: int) -> list[np.ndarray]:
    """Every variable of model and optimizer after so many steps, on gradients of all sizes."""
    optimizer.build(model.trainable_variables)
    compiled = tf.function(lambda *gradients: apply(optimizer, gradients, model.trainable_variables))
    random = np.random.default_rng(0)
    for _ in range(steps):
        scales = 10.0 ** random.integers(-9, 3, len(model.trainable_variables))
        shapes = [v.shape for v in model.trainable_variables]
        compiled(
            *(
                tf.constant(random.standard_normal(shape) * scale, tf.float32)
                for shape, scale in zip(shapes, scales, strict=True)
            )
        )
    return [v.value.numpy() for v in (*model.variables, *optimizer.variables)]


@pytest.mark.parametrize("rate", [0.01, keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.7)])
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_it_is_keras_own_to_the_bit(name: str, rate: Any) -> None:
    ours, theirs = (
        trained(build(name, (9, 7), 3, 5), keras.optimizers.Adam(rate), apply, 40)
        for apply in (tensorflow_adam.apply, lambda optimizer, *rest: optimizer.apply(*rest))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (keras.optimizers.Adam(0.1, epsilon=1e-5), True),
        (keras.optimizers.Adam(amsgrad=True), False),
        (keras.optimizers.Adam(clipnorm=1.0), False),
        (keras.optimizers.Adam(clipvalue=1.0), False),
        (keras.optimizers.Adam(global_clipnorm=1.0), False),
        (keras.optimizers.Adam(weight_decay=0.1), False),
        (keras.optimizers.Adam(use_ema=True), False),
        (keras.optimizers.Adam(gradient_accumulation_steps=2), False),
        (keras.optimizers.AdamW(), False),
        (keras.optimizers.SGD(), False),
    ],
)
def test_it_stands_aside_where_the_optimizer_does_more(optimizer: Any, plain: bool) -> None:
    variables = [keras.Variable(np.zeros(3, np.float32))]
    optimizer.build(variables)
    assert tensorflow_adam.plain(optimizer, [tf.zeros(3)], variables) is plain


def test_it_stands_aside_for_other_gradients_and_variables() -> None:
    adam = keras.optimizers.Adam()
    whole = keras.Variable(np.zeros(3, np.float32))
    assert not tensorflow_adam.plain(adam, [tf.IndexedSlices(tf.zeros(1), tf.constant([0]), None)], [whole])
    assert not tensorflow_adam.plain(adam, [tf.zeros(3)], [keras.Variable(np.zeros(3, np.float16), dtype="float16")])
    bounded = keras.layers.Dense(2, kernel_constraint="non_neg")
    bounded.build((None, 3))
    assert not tensorflow_adam.plain(adam, [tf.zeros((3, 2))], [bounded.kernel])
