"""The published setting of federated distillation, so that others can be compared with it.

Jeong et al., Communication-efficient on-device machine learning: federated distillation and augmentation under non-IID
private data, 2018 (arXiv:1811.11479), section 4: of 55,000 digits of MNIST, each device gets 2,000 that are drawn
uniformly; of three labels, which are drawn for each device, it keeps only 5 samples each. Devices train for 16 times
250 steps on batches of 64.

    python -m benchmarks.fd_setting 10 runs/fd-10                     # --seed for another draw
    entangled run runs/fd-10/fd.toml --run-dir runs/fd-10/run
    python -m benchmarks.fedavg_flower runs/fd-10                     # in an environment of its own: see there

What it writes: `device-N.npz`, a device's private samples and MNIST's 10,000 test samples; and `fd.toml`, our run of
as many steps. The other 5,000 of MNIST's 60,000 training samples are in no device's hands; the first 4,000 of those are
what our devices exchange predictions on, without labels; FD has no such samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from entangled import codec, datasets, experiment_file
from entangled.experiment import Experiment
from entangled.schedule import weight_at
from entangled.splits import Hand, deal

SAMPLES, TARGETS, KEPT = 2_000, 3, 5
"""Of a device; the labels that it lacks; and the samples that it has of each of those."""
STEPS = 16 * 250
BATCH, PUBLIC_BATCH = 64, 32
PUBLIC = 4_000


def device_samples(labels: np.ndarray, devices: int, seed: int) -> list[np.ndarray]:
    """For each device, the places of its samples: `KEPT` of `TARGETS` classes, and all it was dealt of the others."""
    random = np.random.Generator(np.random.PCG64([seed, 0xFD]))
    found: list[np.ndarray] = []
    for dealt in deal(labels, [Hand(samples=SAMPLES)] * devices, seed):
        lacking = random.choice(10, TARGETS, replace=False)
        gone = [dealt[labels[dealt] == c][KEPT:] for c in lacking]
        found.append(dealt[~np.isin(dealt, np.concatenate(gone))])
    return found


def experiment(devices: int, folder: Path, seed: int) -> Experiment:
    """Our run: as many steps on as large private batches, and at each a prediction for `PUBLIC_BATCH` samples."""
    names = [f"device-{n}" for n in range(devices)]
    return Experiment.model_validate(
        {
            "name": f"fd-{devices}",
            "description": "The published setting of federated distillation; benchmarks/fd_setting.py",
            "seed": seed,
            "epochs": STEPS * PUBLIC_BATCH // PUBLIC,
            "batch_size": PUBLIC_BATCH,
            "baselines": ["alone"],
            "exchange": {
                "data": f"mnist[:{PUBLIC}]",
                "shuffle": "full",
                "direction": "other_self",
                "combine": "confidence",
                "weight": {"schedule": "linear", "start": 0.0, "end": 3.0, "per": "step"},
            },
            "peers": {
                name: {
                    "model": "cnn",
                    "optimizer": {"name": "adam", "learning_rate": 0.001},
                    "private": {"data": f"npz:{folder.resolve() / name}.npz", "batch_size": BATCH},
                }
                for name in names
            },
        }
    )


def bytes_moved(experiment: Experiment, samples: int) -> tuple[int, int]:
    """What all predictions of one peer take on the wire, and all its soft targets, as protobuf messages.

    The first equals the sum of the column `bytes` of a run's log for that peer.
    """
    layout, up, down = experiment.layout(samples), 0, 0
    for index in range(layout.positions):
        position = layout.position(index)
        rows = min(layout.batch_size, layout.samples - position.step * layout.batch_size)
        p, digest = np.full((rows, 10), 0.1, np.float32), bytes(16)
        up += codec.encode_prediction(position, digest, p).ByteSize()
        weight = weight_at(experiment.exchange.weight, position, layout)
        down += codec.encode_soft_target(position, digest, weight, p).ByteSize()
    return up, down


def main() -> None:
    """Write the devices' samples and our experiment to a folder."""
    parser = argparse.ArgumentParser(description="Write the setting of federated distillation to a folder.")
    parser.add_argument("devices", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    data = datasets.load("mnist[5000:]")
    given.folder.mkdir(parents=True, exist_ok=True)
    for n, places in enumerate(device_samples(data.y, given.devices, given.seed)):
        np.savez_compressed(
            given.folder / f"device-{n}.npz",
            x_train=np.rint(data.x[places] * 255).astype(np.uint8),
            y_train=data.y[places],
            x_test=np.rint(data.test_x * 255).astype(np.uint8),
            y_test=data.test_y,
        )
        few = [c for c in range(10) if (data.y[places] == c).sum() == KEPT]
        print(f"device {n}: {len(places)} samples, {KEPT} each of {', '.join(map(str, few))}")
    ours = experiment(given.devices, given.folder, given.seed)
    (given.folder / "fd.toml").write_text(experiment_file.dumps(ours), "utf-8")
    up, down = bytes_moved(ours, PUBLIC)
    print(f"our run moves {up + down:,} bytes for each device, {up:,} of them up")


if __name__ == "__main__":
    main()
