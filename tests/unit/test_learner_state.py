"""What a checkpoint holds of a learner is all of it: whoever takes it over goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from entangled.participation import checkpoint
from entangled.participation.checkpoint import Checkpoint
from entangled.participation.seam import SoftTarget
from peer.learners.tensorflow_learner import TensorFlowLearner
from peer.loss import EntangledLoss
from tests.integration.models import noisy

ROWS, CLASSES = 8, 3


def decaying() -> Any:
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5), momentum=0.9)


def by_hand() -> Any:
    """Its learning rate is changed while it trains, as a callback would."""
    return keras.optimizers.Adam(0.01)


def learner(optimizer: Any, seed: int) -> TensorFlowLearner:
    """Of a model with dropout and batch normalisation."""
    keras.utils.set_random_seed(seed)
    return TensorFlowLearner(noisy((4,), CLASSES), optimizer(), EntangledLoss("self_other"))


def train(one: TensorFlowLearner, steps: range) -> list[bytes]:
    seen: list[bytes] = []
    for step in steps:
        random = np.random.default_rng(step)
        x = random.normal(size=(ROWS, 4)).astype(np.float32)
        labels = np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, ROWS)]
        target = SoftTarget(random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32), 0.3)
        seen.append(np.asarray(one.predict(x)).tobytes())
        one.update(x, labels, target)
        if not isinstance(one.optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            one.optimizer.learning_rate = float(one.optimizer.learning_rate) * 0.9
    return seen


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras
@pytest.mark.parametrize("optimizer", [decaying, by_hand])
def test_guarantee_6_model_optimizer_learning_rate_and_random_state_go_on(tmp_path: Path, optimizer) -> None:
    undisturbed = learner(optimizer, 1)
    train(undisturbed, range(5))
    checkpoint.save(tmp_path, "a", Checkpoint("run", 5, {}, list(undisturbed.state())))
    rest = train(undisturbed, range(5, 12))

    again = learner(optimizer, 2)
    found = checkpoint.load(tmp_path, "run", 5)
    assert found is not None
    again.restore(found.state)
    assert train(again, range(5, 12)) == rest
    for one, other in zip(undisturbed.state(), again.state(), strict=True):
        assert np.array_equal(one, other)
