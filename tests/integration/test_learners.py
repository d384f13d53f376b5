"""What `peer.learner.Learner` promises, of every backend: the notebook's loop, the same bits again, a whole state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from entangled import datasets
from entangled.errors import DataError
from examples.notebook_loop import entangle
from peer import backends
from peer.models import build
from tests.integration.learner_process import MODELS, PAIRS, described

STEPS = 40
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, where it saves from TensorFlow


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook's loop, on TensorFlow, eagerly."""
    folder = tmp_path_factory.mktemp("learners")
    data = datasets.load("mnist[:320]")
    x, y = data.x.reshape(STEPS, 8, 28, 28), data.y.reshape(STEPS, 8)
    weight = np.linspace(0.05, 0.5, STEPS)
    for direction, pair in PAIRS.items():
        models = [build(MODELS[name], (28, 28), 10, seed) for seed, name in enumerate(pair)]
        here = folder / "reference" / direction
        here.mkdir(parents=True)
        np.savez(here / "batches.npz", x=x, y=y, weight=weight)
        for name, model in zip(pair, models, strict=True):
            model.save_weights(here / f"{name}.weights.h5")
        batches = ((a, np.eye(10, dtype=np.float32)[b], w) for a, b, w in zip(x, y, weight, strict=True))
        losses, predictions = _notebook(models, batches, direction)
        np.savez(here / "outcome.npz", predictions=predictions, losses=losses, **_weights(pair, models))
    return folder


def _notebook(models: list[Any], batches: Iterable[Any], direction: str) -> tuple[np.ndarray, np.ndarray]:
    seen: list[Any] = []
    optimizers = keras.optimizers.Adam(0.001), keras.optimizers.Adam(0.001)
    twin = entangle(
        (models[0], models[1]), optimizers, batches, direction, lambda *p: seen.append([q.numpy() for q in p])
    )
    return np.array(list(twin)), np.array(seen)


def _weights(names: tuple[str, str], models: list[Any]) -> dict[str, np.ndarray]:
    named = zip(names, models, strict=True)
    return {f"{name} {i}": w for name, model in named for i, w in enumerate(model.get_weights())}


@pytest.fixture(scope="module", params=["tensorflow", "jax", "torch"])
def backend(request: pytest.FixtureRequest, reference: Path) -> str:
    """A backend whose learners have done their work, in a process of their own."""
    command = [sys.executable, "-m", "tests.integration.learner_process", request.param, str(reference)]
    environment = {**os.environ, "KERAS_BACKEND": "none"}  # it must choose
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["computed"].endswith("computes on the CPU")
    return request.param


def load(folder: Path, backend: str, name: str) -> dict[str, Any]:
    with np.load(folder / backend / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("direction", PAIRS)
def test_parity_with_the_notebooks_loop(reference: Path, backend: str, direction: str) -> None:
    found = load(reference, backend, "parity")
    with np.load(reference / "reference" / direction / "outcome.npz") as outcome:
        for name, expected in outcome.items():
            np.testing.assert_allclose(found[f"{direction} {name}"], expected, rtol=0, atol=1e-5, err_msg=name)


def test_what_is_published_has_no_dropout_and_what_is_trained_has(reference: Path, backend: str) -> None:
    found = load(reference, backend, "noise")
    assert np.array_equal(found["before"][0], found["before"][1])
    assert abs(found["losses"][0][0] - found["loss without"]) > 0.01


def test_guarantee_6_the_same_bits_from_the_same_seed_and_from_a_checkpoint(reference: Path, backend: str) -> None:
    found = load(reference, backend, "noise")
    assert np.array_equal(found["losses"][0], found["losses"][1])
    assert np.array_equal(found["losses"][0][5:], found["rest"])
    states = [name for name in found if name.startswith("first ")]
    assert len(states) > 10
    for name in states:
        for other in ("second", "third"):
            assert found[name].tobytes() == found[name.replace("first", other)].tobytes()


def test_private_labels_and_public_samples_are_two_batches_of_one_step(reference: Path, backend: str) -> None:
    found = load(reference, backend, "private")
    for one, other in (("shared", "private"), ("without", "alone")):
        np.testing.assert_allclose(found[f"{one} loss"], found[f"{other} loss"], rtol=1e-5)
        np.testing.assert_allclose(found[f"{one} after"], found[f"{other} after"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["two loss"], found["two expected"], rtol=1e-5)
    assert np.abs(found["two after"] - found["shared after"]).max() > 1e-4


def test_the_saved_model_is_anybodys(reference: Path, backend: str) -> None:
    found = load(reference, backend, "noise")
    model: Any = keras.models.load_model(reference / backend / "noisy.keras")
    np.testing.assert_allclose(model(found["x"], training=False), found["after"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "missing"), [("jax", "jax"), ("torch", "torch"), ("tensorflow", "tensorflow")])
def test_a_framework_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    for variable in ("KERAS_BACKEND", "XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "KERAS_TORCH_DEVICE"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"peer.learners.{name}_learner", raising=False)
    with pytest.raises(DataError, match=rf"{missing} is missing: pip install 'entangled\[{name}\]'"):
        backends.configure(described(name), "cnn")
    assert tf.__version__
