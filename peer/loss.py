"""The entangled loss: CE(y, p_self) + λ · KL."""

from __future__ import annotations

from typing import Any, Literal

import keras


class EntangledLoss:
    """CE(y, p_self) + λ · KL between p_self and the others' prediction, the mean over the batch.

    CE and KL are Keras': natural logarithm, probabilities clipped at 1e-7. The gradient flows through `p_self` only.
    `direction` is `self_other` for KL(p_self ‖ p_other), the notebook's, or `other_self` for KL(p_other ‖ p_self), as
    in deep mutual learning (Zhang et al., CVPR 2018).
    """

    def __init__(self, direction: Literal["self_other", "other_self"]) -> None:
        self._direction = direction
        self._cross_entropy = keras.losses.CategoricalCrossentropy()
        self._divergence = keras.losses.KLDivergence()

    def __call__(self, labels: Any, own: Any, others: Any, weight: Any, shared: Any = None) -> Any:
        """The loss, a scalar.

        Args:
            labels: one-hot `(rows, classes)` float32.
            own: this peer's probabilities, the same shape.
            others: the soft target's probabilities, the same shape unless `shared` is given.
            weight: λ, a scalar.
            shared: with private data, this peer's probabilities for the samples that `others` is about, in its shape;
                `own` are then those for private samples.
        """
        shared = own if shared is None else shared
        pair = (shared, others) if self._direction == "self_other" else (others, shared)
        return self._cross_entropy(labels, own) + weight * self._divergence(*pair)

    def alone(self, labels: Any, own: Any) -> Any:
        """CE(labels, own) alone, a scalar."""
        return self._cross_entropy(labels, own)
