"""A distributed run is the notebook's loop: every prediction and weight, for as the notebook has it over 300 steps.

1e-5 is what must hold anywhere. On a CPU with one thread they are equal to the bit, because a peer's compiled step does
the eager loop's operations in the eager loop's order; so nothing grows with the number of steps.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from entangled import datasets, experiment_file
from entangled.exchange_log import read
from entangled.launch import local
from entangled.schedule import weight_at
from examples.notebook_loop import entangle
from peer.models import build

NOISY = "tests.integration.models:noisy"


@pytest.mark.parametrize(
    ("first", "second", "direction", "steps"),
    [("cnn", "mlp", "self_other", 304), ("cnn", "mlp", "other_self", 80), (NOISY, "mlp", "self_other", 80)],
)
def test_a_distributed_run_is_the_notebooks_loop(
    tmp_path: Path, first: str, second: str, direction: str, steps: int
) -> None:
    experiment = experiment_file.load(
        "notebook",
        [
            "epochs=2",
            f'exchange.data="mnist[:{steps * 4}]"',
            f'exchange.direction="{direction}"',
            "exchange.weight={schedule='linear', start=0.05, end=0.2, per='step'}",
            "peers.cnn.optimizer.learning_rate=0.001",
            "peers.mlp.optimizer.learning_rate=0.001",
            f'peers.cnn.model="{first}"',
            f'peers.mlp.model="{second}"',
        ],
    )
    run = tmp_path / "run"
    local.run(experiment, run, observe=lambda _: None)

    data = datasets.load(experiment.exchange.data)
    layout = experiment.layout(len(data.x))
    assert layout.positions == steps
    rows = [row for row, _ in read(run)]
    assert len(rows) == 2 * steps

    models = [
        build(experiment.peers[name].model, data.x.shape[1:], data.classes, experiment.peer_seed(name))
        for name in experiment.peer_names
    ]
    for name, model in zip(experiment.peer_names, models, strict=True):
        model.load_weights(run / "peers" / name / "initial.weights.h5")
    optimizers = keras.optimizers.Adam(0.001), keras.optimizers.Adam(0.001)
    batches = (
        (
            data.x[row.sample_ids],
            np.eye(10, dtype=np.float32)[data.y[row.sample_ids]],
            weight_at(experiment.exchange.weight, row.position, layout),
        )
        for row in rows[::2]
    )
    predictions: list[tuple[np.ndarray, np.ndarray]] = []
    twin = entangle(
        tuple(models), optimizers, batches, direction, lambda a, b: predictions.append((a.numpy(), b.numpy()))
    )
    losses = np.array(list(twin))

    for (a, b), row_a, row_b in zip(predictions, rows[::2], rows[1::2], strict=True):
        np.testing.assert_allclose(row_a.prediction, a, rtol=0, atol=1e-5, err_msg=str(row_a.position))
        np.testing.assert_allclose(row_b.prediction, b, rtol=0, atol=1e-5, err_msg=str(row_a.position))
    for i, (name, model) in enumerate(zip(experiment.peer_names, models, strict=True)):
        final = keras.models.load_model(run / "peers" / name / "final.keras")
        for own, oracle in zip(final.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(own, oracle, rtol=0, atol=1e-5)
        lines = [json.loads(line) for line in (run / "peers" / name / "metrics.jsonl").read_text().splitlines()]
        expected = losses[:, i].reshape(2, -1).mean(axis=1)
        np.testing.assert_allclose([line["loss"] for line in lines], expected, atol=1e-4)
