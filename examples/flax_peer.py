"""A peer in Flax and Optax: a jitted step, and the exchange between predicting and learning.

python examples/flax_peer.py --coordinator 127.0.0.1:50051 --name mlp
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import entangled


class Mlp(nn.Module):
    """Gives logits."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `(rows, classes)` of inputs `(rows, …)`."""
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(self.classes)(x)


def main() -> None:
    """Train an MLP as one peer of a run."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--coordinator", default="127.0.0.1:50051")
    arguments.add_argument("--name", default="mlp")
    given = arguments.parse_args()

    with entangled.join(given.coordinator, name=given.name) as peer:
        x, y = peer.dataset.x, peer.dataset.y
        model, optimizer = Mlp(peer.classes), optax.adam(0.003)
        weights = model.init(jax.random.key(0), x[:1])
        moments = optimizer.init(weights)

        @jax.jit
        def predict(weights: Any, inputs: Any) -> Any:
            return jax.nn.softmax(model.apply(weights, inputs))

        @jax.jit
        def update(weights: Any, moments: Any, inputs: Any, labels: Any, others: Any, weight: Any) -> Any:
            def entangled_loss(weights: Any) -> Any:
                logs = jax.nn.log_softmax(model.apply(weights, inputs))
                pull = (jnp.exp(logs) * (logs - jnp.log(jnp.clip(others, 1e-7, 1)))).sum(axis=1).mean()
                return optax.softmax_cross_entropy_with_integer_labels(logs, labels).mean() + weight * pull

            loss, gradients = jax.value_and_grad(entangled_loss)(weights)
            changes, moments = optimizer.update(gradients, moments)
            return optax.apply_updates(weights, changes), moments, loss

        for batch in peer:
            inputs, labels = x[batch.ids], y[batch.ids]
            target = batch.exchange(predict(weights, inputs))
            weights, moments, loss = update(weights, moments, inputs, labels, target.probabilities, target.weight)
            if batch.report_due:
                batch.report(loss=float(loss))


if __name__ == "__main__":
    main()
