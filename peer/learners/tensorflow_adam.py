"""Keras' Adam in TensorFlow's graph, in fewer operations and to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

EXTRAS = (
    "amsgrad",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)
"""What `apply` does not do."""


def plain(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> bool:
    """Whether `apply` does what the optimizer's own does: Adam as published, dense gradients, float32, on the CPU."""
    return (
        type(optimizer) is keras.optimizers.Adam
        and not any(getattr(optimizer, extra, True) for extra in EXTRAS)
        and all(isinstance(gradient, tf.Tensor) for gradient in gradients)
        and all(v.dtype == "float32" and v.constraint is None and not v.overwrite_with_gradient for v in variables)
        and all("GPU" not in v.value.device for v in variables)
    )


def apply(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """One step of Adam (Kingma and Ba, 2015), as `keras.optimizers.Adam.apply` computes it.

    With g the gradient, t the step, from 1, and all in float32:

        α = learning rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ)
        m ← m + (g - m) · (1 - β₁)
        v ← v + (g² - v) · (1 - β₂)
        w ← w - m · α / (√v + ε)

    Keras writes that as twelve operations for each variable, each of which goes through the memory of all its values,
    and computes α for each variable. TensorFlow has x - y · a as one operation, and the last line as what Adagrad ends
    with; they round as the single operations do. (Its own Adam computes 1 - β in float32, which rounds otherwise.)

    Args:
        optimizer: `plain`, and built for `variables`.
        gradients: of the loss by each variable.
        variables: of Keras, in the order that the optimizer was built with.
    """
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    first, second = (tf.pow(tf.constant(beta, tf.float32), step) for beta in (optimizer.beta_1, optimizer.beta_2))
    alpha = tf.cast(optimizer.learning_rate, tf.float32) * tf.sqrt(1 - second) / (1 - first)
    rates = [tf.constant(1 - beta, tf.float32) for beta in (optimizer.beta_1, optimizer.beta_2)]
    epsilon = tf.constant(optimizer.epsilon, tf.float32)
    moments = zip(optimizer._momentums, optimizer._velocities, strict=True)  # it has no other name for them
    for gradient, variable, (momentum, velocity) in zip(gradients, variables, moments, strict=True):
        m, v = momentum.value, velocity.value
        tf.raw_ops.ResourceApplyGradientDescent(var=m.handle, alpha=rates[0], delta=m - gradient)
        tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=rates[1], delta=v - tf.square(gradient))
        tf.raw_ops.ResourceApplyAdagradV2(
            var=variable.value.handle, accum=v.handle, lr=alpha, epsilon=epsilon, grad=m, update_slots=False
        )
    optimizer.iterations.assign_add(1)
