"""A peer takes the GPU and the memory that the experiment gives it, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from entangled import devices
from entangled.errors import DataError
from peer.learners import tensorflow_learner

Settings = dict[str, Any]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What is set on a host of two GPUs, of 8000 and 16000 MiB."""
    found: Settings = {"growth": {}, "limit": {}}
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda _: None)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", lambda _: None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["first", "second"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda chosen, _: found.update(visible=chosen))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", found["growth"].__setitem__)
    monkeypatch.setattr(
        tf.config,
        "set_logical_device_configuration",
        lambda gpu, limits: found["limit"].__setitem__(gpu, [limit.memory_limit for limit in limits]),
    )
    monkeypatch.setattr(devices, "gpus", lambda: devices.Gpus((devices.Gpu("a", 8000), devices.Gpu("b", 16000))))
    return found


def test_without_memory_a_gpu_is_shared_by_growth(settings: Settings) -> None:
    tensorflow_learner.configure("auto", 1)
    assert settings == {"visible": ["first"], "growth": {"first": True}, "limit": {}}


@pytest.mark.parametrize(("memory", "mib"), [(0.25, 4000), (3000, 3000)])
def test_a_gpu_by_number_with_a_part_of_its_memory(settings: Settings, memory: float, mib: int) -> None:
    tensorflow_learner.configure("gpu:1", 1, memory)
    assert settings == {"visible": ["second"], "growth": {}, "limit": {"second": [mib]}}


def test_the_cpu_has_no_gpu_memory(settings: Settings) -> None:
    tensorflow_learner.configure("cpu", 1, 0.5)
    assert settings == {"visible": [], "growth": {}, "limit": {}}


@pytest.mark.usefixtures("settings")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="there is no gpu:2 here: TensorFlow sees 2 GPUs"):
        tensorflow_learner.configure("gpu:2", 1)
