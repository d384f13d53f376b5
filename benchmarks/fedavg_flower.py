"""Plain federated averaging of one architecture, written with Flower: what our runs are compared with.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, 2017, by Flower's own
`FedAvg` and simulation engine, on the devices that `benchmarks.fd_setting` wrote. In each of 16 rounds, every device
trains the common model for 250 steps on batches of 64 (Adam, begun anew), and the server takes the mean of weights by
numbers of samples. The model is the notebook's CNN, with Keras on JAX.

Flower and our own constraints exclude each other, so it has an environment of its own:

    python3 -m venv flower-env
    flower-env/bin/pip install 'flwr[simulation]==1.42.0' keras==3.15.1 jax==0.10.2
    flower-env/bin/python -m benchmarks.fedavg_flower runs/fd-10
"""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import keras
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from entangled import datasets
from peer import models
from peer.private import PrivateBatches

ROUNDS, STEPS, BATCH = 16, 250, 64
LEARNING_RATE = 0.001

client = ClientApp()


@functools.cache
def _device(folder: str, number: int) -> datasets.Dataset:
    return datasets.load(f"npz:{folder}/device-{number}.npz", classes=10)


@functools.cache
def _model(seed: int) -> tuple[Any, list[np.ndarray]]:
    """A model, ready to train, and what is in its optimizer before that."""
    model = models.build("cnn", (28, 28), 10, seed)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    return model, [np.array(v) for v in optimizer.variables]


@client.train()
def train(message: Message, context: Context) -> Message:
    """One device's part in a round."""
    config: Any = message.content["config"]
    number = int(context.node_config["partition-id"])
    data, (model, fresh) = _device(config["folder"], number), _model(config["seed"])
    for variable, value in zip(model.optimizer.variables, fresh, strict=True):
        variable.assign(value)
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())

    batches = PrivateBatches(data, BATCH, config["seed"] * 1000 + number)
    first = (config["server-round"] - 1) * STEPS
    places = np.concatenate([batches.places(first + n) for n in range(STEPS)])
    model.fit(data.x[places], data.y[places], batch_size=BATCH, shuffle=False, verbose=0)

    metrics = MetricRecord({"num-examples": len(data.x)})
    return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)


class Counting(FedAvg):
    """Flower's `FedAvg`, counting the bytes of all weights that it sends and receives."""

    moved = 0

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """See `FedAvg`."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.moved += sum(m.content["arrays"].count_bytes() for m in messages)
        return messages

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """See `FedAvg`."""
        replies = list(replies)
        failed = [m.error.reason for m in replies if m.has_error()]
        if failed:
            raise RuntimeError(failed[0])
        self.moved += sum(m.content["arrays"].count_bytes() for m in replies)
        return super().aggregate_train(server_round, replies)


def simulate(folder: Path, seed: int) -> None:
    """Simulate all rounds, and print the averaged model's test accuracy after some of them, and the bytes."""
    devices = len(list(folder.glob("device-*.npz")))
    test = _device(str(folder), 0)
    server = ServerApp()
    strategy = Counting(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)

    def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
        model, _ = _model(seed)
        model.set_weights(arrays.to_numpy_ndarrays())
        _, accuracy = model.evaluate(test.test_x, test.test_y, batch_size=1000, verbose=0)
        if round_ in (1, 4, ROUNDS):
            print(f"round {round_}: test accuracy {accuracy:.2%}", flush=True)
        return MetricRecord({"accuracy": float(accuracy)})

    @server.main()
    def _(grid: Any, context: Context) -> None:
        first = ArrayRecord(_model(seed)[0].get_weights())
        config = ConfigRecord({"folder": str(folder), "seed": seed})
        strategy.start(grid, first, ROUNDS, train_config=config, evaluate_fn=evaluate)

    run_simulation(server, client, devices, backend_config={"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}})
    print(f"{devices} devices: {strategy.moved / devices:,.0f} bytes of weights for each, both ways")


def main() -> None:
    """Read the arguments; hand over to this module under its own name, by which the simulated devices can find it."""
    from benchmarks import fedavg_flower

    parser = argparse.ArgumentParser(description="Plain FedAvg, with Flower.")
    parser.add_argument("folder", type=Path, help="as benchmarks.fd_setting wrote it")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and batches")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    fedavg_flower.simulate(given.folder.resolve(), given.seed)


if __name__ == "__main__":
    main()
