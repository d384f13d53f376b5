"""A peer in PyTorch Lightning: a mixin for your module, a data loader, and a callback for the goodbye.

python examples/lightning_peer.py --coordinator 127.0.0.1:50051 --name mlp
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import entangled


class Batches(IterableDataset[entangled.Batch]):
    """The run's batches, one epoch of the run for one of Lightning's."""

    def __init__(self, peer: entangled.Peer) -> None:
        self._peer = peer

    def __iter__(self) -> Iterator[entangled.Batch]:
        for batch in self._peer:
            yield batch
            if batch.last:
                return

    def loader(self) -> DataLoader[entangled.Batch]:
        """A loader that hands the batches on as they are."""
        return DataLoader(self, batch_size=None)


class EntangledModule(lightning.LightningModule):
    """A module whose `forward` gives logits: its training step exchanges, and adds λ · KL to `loss`."""

    samples: tuple[torch.Tensor, torch.Tensor]
    """Inputs and labels, by sample id."""

    def training_step(self, batch: entangled.Batch) -> torch.Tensor:
        """Publish the prediction for the batch, and learn from the labels and the others."""
        inputs, labels = (values[batch.ids].to(self.device) for values in self.samples)
        self.eval()
        with torch.no_grad():
            target = batch.exchange(self(inputs).softmax(dim=1))
        self.train()
        logs = self(inputs).log_softmax(dim=1)
        others = torch.tensor(target.probabilities, device=self.device).clamp(1e-7, 1)
        pull = (logs.exp() * (logs - others.log())).sum(dim=1).mean()
        loss = nn.functional.nll_loss(logs, labels) + target.weight * pull
        batch.report(loss=loss.item())
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch is ids; what they name is moved in the step."""
        return batch


class Farewell(lightning.Callback):
    """Says to the coordinator why training broke off, if it does."""

    def __init__(self, peer: entangled.Peer) -> None:
        self._peer = peer

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: Any) -> None:
        """Lightning may end the process before the `with` block is left."""
        self._peer.__exit__(type(exception), exception, None)


class Mlp(EntangledModule):
    """Any module of yours."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.layers(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimizer of yours."""
        return torch.optim.Adam(self.parameters(), lr=0.003)


def main() -> None:
    """Train a module as one peer of a run."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--coordinator", default="127.0.0.1:50051")
    arguments.add_argument("--name", default="mlp")
    given = arguments.parse_args()

    lightning.seed_everything(0, verbose=False)
    with entangled.join(given.coordinator, name=given.name) as peer:
        data = peer.dataset
        module = Mlp(int(data.x[0].size), data.classes)
        module.samples = torch.from_numpy(data.x), torch.from_numpy(data.y)
        trainer = lightning.Trainer(
            max_epochs=peer.experiment.epochs,
            accelerator="auto",
            callbacks=[Farewell(peer)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Batches(peer).loader())


if __name__ == "__main__":
    main()
