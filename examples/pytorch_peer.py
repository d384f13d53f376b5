"""A peer in plain PyTorch: the loop that you have, and three lines more.

    entangled coordinator EXPERIMENT --listen 127.0.0.1:50051
    python examples/pytorch_peer.py --coordinator 127.0.0.1:50051 --name mlp [--checkpoints FOLDER]

With `--checkpoints`, a kill costs nothing: started again, it goes on, and ends with the same weights.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

import entangled


def main() -> None:
    """Train an MLP as one peer of a run."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--coordinator", default="127.0.0.1:50051")
    arguments.add_argument("--name", default="mlp")
    arguments.add_argument("--checkpoints")
    given = arguments.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}

    def restore(kept: dict[str, Any]) -> None:
        model.load_state_dict(tensors(kept["model"]))
        optimizer.load_state_dict(tensors(kept["optimizer"]))
        torch.set_rng_state(torch.from_numpy(kept["random"]))

    with entangled.join(given.coordinator, name=given.name) as peer:
        x, y = torch.from_numpy(peer.dataset.x), torch.from_numpy(peer.dataset.y)
        model(x[:1])  # so that its first layer knows how wide it is
        if given.checkpoints:
            peer.keep(given.checkpoints, state, restore)
        for batch in peer:
            inputs, labels = x[batch.ids], y[batch.ids]
            model.eval()
            with torch.no_grad():
                target = batch.exchange(model(inputs).softmax(dim=1))
            model.train()
            logs = model(inputs).log_softmax(dim=1)
            others = torch.tensor(target.probabilities).clamp(1e-7, 1)
            pull = (logs.exp() * (logs - others.log())).sum(dim=1).mean()  # KL(self ‖ others)
            loss = nn.functional.nll_loss(logs, labels) + target.weight * pull
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch.report(loss=loss.item(), accuracy=(logs.argmax(dim=1) == labels).float().mean().item())
        model.eval()
        right = model(torch.from_numpy(peer.dataset.test_x)).argmax(dim=1) == torch.from_numpy(peer.dataset.test_y)
        peer.finish(test_accuracy=right.float().mean().item())


def tensors(tree: Any) -> Any:
    """What `state` gave, with tensors again in the place of arrays."""
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [tensors(value) for value in tree]
    return torch.from_numpy(tree.copy()) if hasattr(tree, "dtype") else tree


if __name__ == "__main__":
    main()
