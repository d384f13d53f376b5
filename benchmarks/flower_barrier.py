"""A barrier exchange by Flower's simulation, for `benchmarks.exchange --flower-python PYTHON`.

Flower and our own constraints exclude each other, so it has an environment of its own; nothing else is needed in it:

    python3 -m venv flower-env
    flower-env/bin/pip install 'flwr[simulation]==1.42.0'
    flower-env/bin/python benchmarks/flower_barrier.py --peers 2 --rows 8 --classes 10 --exchanges 60

In each round the server sends each client the mean of what the others said in the round before, and every client
answers with the batch of distributions that it publishes: no strategy, evaluation or aggregation of Flower's, which
would take longer. Prints the rounds per second between the first tenth and the end.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

client = ClientApp()


@client.train()
def publish(message: Message, context: Context) -> Message:
    """One peer's part in a round."""
    rows = message.content["arrays"].to_numpy_ndarrays()[0]
    random = np.random.default_rng(int(context.node_config["partition-id"]))
    raw = random.random(rows.shape, np.float32) + 1e-3
    said = raw / raw.sum(axis=1, keepdims=True)
    return Message(RecordDict({"arrays": ArrayRecord([said])}), reply_to=message)


def rounds(grid: Grid, peers: int, shape: tuple[int, int], exchanges: int) -> float:
    """Exchange so often; rounds per second without the first tenth."""
    while len(nodes := sorted(grid.get_node_ids())) < peers:
        time.sleep(0.1)
    targets = {node: np.full(shape, 1 / shape[1], np.float32) for node in nodes}
    warm, began = exchanges // 10, 0.0
    for number in range(exchanges):
        asked = [
            Message(RecordDict({"arrays": ArrayRecord([targets[node]])}), dst_node_id=node, message_type="train")
            for node in nodes
        ]
        answers = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(asked)}
        said = {node: answers[node].content["arrays"].to_numpy_ndarrays()[0] for node in nodes}
        total = np.sum(list(said.values()), axis=0)
        targets = {node: (total - said[node]) / (peers - 1) for node in nodes}
        if number + 1 == warm:
            began = time.perf_counter()
    return (exchanges - warm) / (time.perf_counter() - began)


def main() -> None:
    """Print the rounds per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("peers", 2), ("rows", 8), ("classes", 10), ("exchanges", 60)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    server, found = ServerApp(), []

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        found.append(rounds(grid, given.peers, (given.rows, given.classes), given.exchanges))

    backend: dict[str, Any] = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": max(2, given.peers)}}
    run_simulation(server, client, num_supernodes=given.peers, backend_name="ray", backend_config=backend)
    print(found[0], flush=True)


if __name__ == "__main__":
    main()
