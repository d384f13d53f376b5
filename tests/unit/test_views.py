"""The same samples, different features: joined by id; what somebody lacks is left out for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.gathering import Gathering
from entangled import datasets, views
from entangled.errors import AlignmentError, DataError, ExperimentError, MembershipError
from entangled.experiment import Experiment, parse

IDS = np.array([70, 10, 40, 20, 90])


def experiment(**view: object) -> Experiment:
    peers = {name: {"model": "mlp", "view": view} for name in ("a", "b")}
    return parse({"name": "x", "epochs": 1, "batch_size": 2, "exchange": {}, "peers": peers}, "test")


def saved(folder: Path, name: str, ids: np.ndarray, scale: float = 1.0) -> str:
    """Features that tell which sample they are of: `scale` times its id, in both of two columns."""
    x = (ids[:, None] * np.array([scale, scale + 1])).astype(np.float32)
    np.savez(folder / f"{name}.npz", ids=ids, x_train=x, y_train=ids // 10 % 2, x_test=x[:2], y_test=[0, 1])
    return f"npz:{folder}/{name}.npz"


def test_files_in_any_order_give_the_same_samples_and_fingerprints(tmp_path: Path) -> None:
    settings = experiment()
    a = views.load(settings, "a", saved(tmp_path, "a", IDS))
    b = views.load(settings, "b", saved(tmp_path, "b", IDS[[3, 0, 4, 1]], scale=3.0))
    gathering = Gathering(("a", "b"))
    assert gathering.hold("a", a.names) == []
    assert gathering.waited_for == ["b"]
    assert gathering.hold("b", b.names) == ["peer b lacks 1 samples (40): left out for all"]
    assert gathering.common is not None
    assert gathering.common.tolist() == [10, 20, 70, 90]
    mine, other = a.only(gathering.common), b.only(gathering.common)
    assert mine.x[:, 0].tolist() == [10, 20, 70, 90]
    assert other.x[:, 0].tolist() == [30, 60, 210, 270]
    assert mine.y.tolist() == other.y.tolist() == [1, 0, 1, 1]
    assert mine.fingerprint() == other.fingerprint() != a.data.fingerprint()
    assert a.only(gathering.common[:3]).fingerprint() != mine.fingerprint()


def test_what_was_agreed_on_stays(tmp_path: Path) -> None:
    gathering = Gathering(("a", "b"), np.array([10, 20]))
    assert gathering.hold("a", IDS) == []
    with pytest.raises(AlignmentError, match="peer b lacks samples that all peers had"):
        gathering.hold("b", np.array([20, 30]))
    view = views.load(experiment(), "a", saved(tmp_path, "a", IDS))
    with pytest.raises(AlignmentError, match="samples that all peers had are gone"):
        view.only(np.array([10, 30]))


def test_who_speaks_again_is_heard_again_until_all_have_spoken() -> None:
    gathering = Gathering(("a", "b"))
    gathering.hold("a", np.array([1, 2]))
    gathering.hold("a", np.array([3, 2]))
    gathering.hold("b", np.array([3, 1]))
    assert gathering.common is not None
    assert gathering.common.tolist() == [3]


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    gathering = Gathering(("a", "b"))
    with pytest.raises(MembershipError, match="no such peer"):
        gathering.hold("c", IDS)
    with pytest.raises(AlignmentError, match="a sample id twice"):
        gathering.hold("a", np.array([1, 1]))
    gathering.hold("a", np.array([1]))
    with pytest.raises(AlignmentError, match="no sample is one that every peer has"):
        gathering.hold("b", np.array([2]))
    assert gathering.waited_for == ["b"]
    with pytest.raises(DataError, match="has a sample id twice"):
        views.load(experiment(), "a", saved(tmp_path, "twice", np.array([1, 2, 1])))
    with pytest.raises(DataError, match="has not so many columns"):
        views.load(experiment(columns=[1, 3]), "a", saved(tmp_path, "a", IDS))
    with pytest.raises(ExperimentError, match="names no data: give it to the peer itself, --view"):
        views.load(experiment(), "a")
    np.savez(tmp_path / "bad.npz", ids=[0.5], x_train=[[1.0]], y_train=[0], x_test=[[1.0]], y_test=[1])
    with pytest.raises(DataError, match="ids is not one whole number for each sample"):
        views.load(experiment(), "a", f"npz:{tmp_path}/bad.npz")


def test_columns_are_of_the_last_axis_and_slices_keep_their_names() -> None:
    peers = {
        "left": {"model": "mlp", "view": {"columns": [0, 14]}},
        "right": {"model": "mlp", "view": {"columns": [14, 28]}},
    }
    exchange = {"data": "mnist[100:110]"}
    halves = parse({"name": "x", "epochs": 1, "batch_size": 2, "exchange": exchange, "peers": peers}, "test")
    left, right = (views.load(halves, name) for name in peers)
    whole = datasets.load("mnist[100:110]")
    assert np.array_equal(np.concatenate([left.data.x, right.data.x], axis=2), whole.x)
    assert left.data.test_x.shape == (10_000, 28, 14)
    assert left.names.tolist() == list(range(100, 110))
