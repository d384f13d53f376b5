"""Models by name."""

from __future__ import annotations

from typing import Any

import keras

from entangled import datasets
from entangled.errors import DataError


def cnn(input_shape: tuple[int, ...], classes: int) -> Any:
    """The notebook's CNN for images `(height, width)` or `(height, width, channels)`."""
    image = input_shape if len(input_shape) == 3 else (*input_shape, 1)
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Reshape(image),
            keras.layers.Conv2D(16, (3, 3), activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def mlp(input_shape: tuple[int, ...], classes: int) -> Any:
    """The notebook's MLP, for inputs of any shape."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def build(name: str, input_shape: tuple[int, ...], classes: int, seed: int) -> Any:
    """Build a model with weights that are a function of `seed` alone.

    Args:
        name: `cnn`, `mlp`, or `module:function`, a function of (input shape, classes) that returns a Keras model whose
            output is a probability distribution, `(rows, classes)`.
        input_shape: of one sample.
        classes: number of classes.
        seed: of initial weights and dropout.

    Raises:
        DataError: there is no such model, or its output has another shape.
    """
    keras.utils.set_random_seed(seed)
    module, _, function = name.partition(":")
    if function:
        model = datasets.call(module, function, input_shape, classes)
    elif name in (known := {"cnn": cnn, "mlp": mlp}):
        model = known[name](input_shape, classes)
    else:
        raise DataError("no such model", expected="cnn, mlp or module:function", got=name)
    if tuple(model.output_shape) != (None, classes):
        raise DataError(
            f"model {name} has the wrong output", expected=f"(rows, {classes})", got=str(model.output_shape)
        )
    return model
