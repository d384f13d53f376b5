"""Which framework a peer's model computes on, chosen once for the process."""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

from entangled import devices, process
from entangled.errors import DataError
from entangled.experiment import Experiment
from peer.learner import Learner

_MODULES = {
    "tensorflow": "peer.learners.tensorflow_learner",
    "jax": "peer.learners.jax_learner",
    "torch": "peer.learners.torch_learner",
}

_BUILDING = threading.Lock()


def select(experiment: Experiment, peer: str, device: str | None = None) -> None:
    """Say in the environment which framework and device to use: they look when they are imported, and never again.

    Args:
        experiment: the run's.
        peer: the name in it.
        device: instead of the experiment's.

    Raises:
        DataError: the peer has no model, or the device less memory than asked for.
    """
    settings = experiment.peers[peer]
    if not settings.model:
        raise DataError(
            f"peers.{peer} has no model: it must come with a training loop of its own, which calls entangled.join"
        )
    device = device or settings.device
    os.environ["KERAS_BACKEND"] = settings.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if settings.backend == "tensorflow":
        return  # it can be told later
    if device == "cpu":
        os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device.startswith("gpu:"):
        shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        number = devices.number(device)
        os.environ["CUDA_VISIBLE_DEVICES"] = shown[number] if number < len(shown) else str(number)
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"]
    if settings.threads == 1:
        flags.append("--xla_cpu_multi_thread_eigen=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch is deterministic only with it
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if settings.memory is not None and device != "cpu":
        share = settings.memory
        if share > 1:
            share = devices.memory_mib(share, 0) / devices.gpus().devices[0].memory_mib
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.4f}"


def configure(experiment: Experiment, peer: str, device: str | None = None, peers: int = 1) -> Any:
    """Make the process ready for one peer's framework, before anything else imports Keras.

    Args:
        experiment: the run's.
        peer: the name in it.
        device: instead of the experiment's.
        peers: how many, of the same framework, device, memory and threads, will compute in this process.

    Returns:
        The backend's module.

    Raises:
        DataError: the framework is missing, which says how to install it; or there is no such device.
    """
    select(experiment, peer, device)
    settings = experiment.peers[peer]
    try:
        with process.quiet():
            module = _module(settings.backend)
            module.configure(device or settings.device, settings.threads, settings.memory, peers)
    except ModuleNotFoundError as error:
        gpu = " (or [gpu], with CUDA)" if settings.backend == "tensorflow" else ""
        raise DataError(f"{error.name} is missing: pip install 'entangled[{settings.backend}]'{gpu}") from None
    return module


def learner(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> Learner:
    """The learner that the experiment describes for one of its peers, untrained. After `configure`.

    One at a time is built in a process, whatever thread asks: random seeds are everybody's.

    Args:
        experiment: the run's.
        peer: the name in it.
        shape: of one sample.
        classes: number of classes.

    Raises:
        DataError: the model cannot be used.
    """
    with _BUILDING:
        return _module(experiment.peers[peer].backend).learner(experiment, peer, shape, classes)


def _module(backend: str) -> Any:
    return importlib.import_module(_MODULES[backend])
