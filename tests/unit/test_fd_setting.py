"""The published setting that FD, FedAvg and our runs are compared in: who has which samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import fd_setting
from entangled import experiment_file
from entangled.alignment import Layout


def test_each_device_lacks_three_classes_but_for_five_samples_and_no_sample_is_on_two_devices() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 12_000)
    found = fd_setting.device_samples(labels, devices=5, seed=3)
    assert len(np.unique(np.concatenate(found))) == sum(len(places) for places in found)
    for places in found:
        counts = np.bincount(labels[places], minlength=10)
        assert sorted(counts)[:3] == [5, 5, 5]
        assert sorted(counts)[3] > 100
    assert len({tuple(np.bincount(labels[p], minlength=10) == 5) for p in found}) > 1, "all lack the same classes"


def test_our_run_has_as_many_steps_on_as_large_batches_as_the_paper(tmp_path: Path) -> None:
    experiment = fd_setting.experiment(10, tmp_path, seed=1)
    path = tmp_path / "fd.toml"
    path.write_text(experiment_file.dumps(experiment), "utf-8")
    read = experiment_file.load(str(path))
    assert read == experiment
    assert Layout(fd_setting.PUBLIC, read.batch_size, read.epochs).positions == 4_000
    assert {p.private.batch_size for p in read.peers.values() if p.private} == {64}
