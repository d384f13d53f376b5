"""Which framework a peer's model computes on, chosen once for the process."""

from __future__ import annotations

import importlib
import os
from typing import Any

from entangled import process
from entangled.errors import DataError
from entangled.experiment import Experiment
from peer.learner import Learner

_MODULES = {"tensorflow": "peer.learners.tensorflow_learner"}


def configure(experiment: Experiment, peer: str, device: str | None = None) -> Any:
    """Make the process ready for one peer's framework, before anything else imports Keras.

    Args:
        experiment: the run's.
        peer: the name in it.
        device: instead of the experiment's.

    Returns:
        The backend's module.

    Raises:
        DataError: the framework is missing, which says how to install it; or there is no such device.
    """
    settings, backend = experiment.peers[peer], "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = backend
    try:
        with process.quiet():
            module: Any = importlib.import_module(_MODULES[backend])
            module.configure(device or settings.device, settings.threads, settings.memory)
    except ModuleNotFoundError as error:
        raise DataError(f"{error.name} is missing: pip install 'entangled[{backend}]'") from None
    return module


def learner(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> Learner:
    """The learner that the experiment describes for one of its peers, untrained. After `configure`.

    Args:
        experiment: the run's.
        peer: the name in it.
        shape: of one sample.
        classes: number of classes.

    Raises:
        DataError: the model cannot be used.
    """
    return importlib.import_module(_MODULES["tensorflow"]).learner(experiment, peer, shape, classes)
