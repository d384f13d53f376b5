"""A peer in scikit-learn, which has no loss to add to: soft targets become samples with weights.

    python examples/sklearn_peer.py --coordinator 127.0.0.1:50051 --name linear

Random features, and a linear classifier that learns by `partial_fit`. Each sample of a batch is learned once with its
label, weight 1, and once with every class, weighted by λ times what the others say of it: CE(y, p) + λ · CE(p_other,
p), whose gradient is that of KL(p_other ‖ p_self), the direction of deep mutual learning.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDClassifier

import entangled


def main() -> None:
    """Train a random-feature classifier as one peer of a run."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--coordinator", default="127.0.0.1:50051")
    arguments.add_argument("--name", default="linear")
    given = arguments.parse_args()

    with entangled.join(given.coordinator, name=given.name) as peer:
        data, classes = peer.dataset, np.arange(peer.classes)
        features = RBFSampler(gamma=0.01, n_components=300, random_state=0)
        x = features.fit_transform(data.x.reshape(len(data.x), -1))
        model = SGDClassifier(loss="log_loss", random_state=0)
        known = False
        for batch in peer:
            inputs, labels = x[batch.ids], data.y[batch.ids]
            p = model.predict_proba(inputs) if known else np.full((len(batch), len(classes)), 1 / len(classes))
            target = batch.exchange(p)
            soft = target.weight * target.probabilities
            model.partial_fit(
                np.concatenate([inputs, np.repeat(inputs, len(classes), axis=0)]),
                np.concatenate([labels, np.tile(classes, len(batch))]),
                classes,
                np.concatenate([np.ones(len(batch)), soft.reshape(-1)]),
            )
            known = True
            batch.report(accuracy=float((p.argmax(axis=1) == labels).mean()))
        test = features.transform(data.test_x.reshape(len(data.test_x), -1))
        peer.finish(test_accuracy=float(model.score(test, data.test_y)))


if __name__ == "__main__":
    main()
