"""A model that behaves differently in training: dropout and batch normalisation."""

from __future__ import annotations

from typing import Any

import keras


def noisy(input_shape: tuple[int, ...], classes: int) -> Any:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3, seed=7),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def normed(input_shape: tuple[int, ...], classes: int) -> Any:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
