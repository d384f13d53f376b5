"""Data sets by name: what is loaded, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entangled import datasets
from entangled.errors import DataError

X = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
Y = np.array([2, 0, 1, 1, 0, 2])
GOOD = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}


@pytest.fixture
def save(tmp_path: Path):
    def save(**arrays) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return save


# What `module:function` finds; the test names this module.
def good():
    return (X, Y), (X[:2], Y[:2])


def not_a_pair_of_pairs():
    return X, Y, X


def float_inputs():
    return (X.astype(np.float64), Y[:, None]), (X[:2].tolist(), Y[:2].tolist())


def test_mnist_is_shipped() -> None:
    data = datasets.load("mnist")
    assert data.x.shape == (60_000, 28, 28)
    assert data.test_x.shape == (10_000, 28, 28)
    assert data.classes == 10
    assert data.x.dtype == data.test_x.dtype == np.float32
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    assert data.y.dtype == data.ids.dtype == np.int64
    assert np.array_equal(data.ids, np.arange(60_000))
    assert np.bincount(data.y, minlength=10).min() > 5000


def test_slices_keep_training_samples_and_name_them_from_zero(save) -> None:
    name = save(**GOOD)
    for text, part in [("[1:4]", slice(1, 4)), ("[:3]", slice(3)), ("[4:]", slice(4, None)), ("[:]", slice(None))]:
        data = datasets.load(name + text)
        assert data.y.tolist() == Y[part].tolist()
        assert np.array_equal(data.x, X[part].astype(np.float32) / np.float32(255))
        assert data.ids.tolist() == list(range(len(data.y)))
        assert len(data.test_x) == 2
        assert data.classes == 3  # of the whole data set, so that peers with different slices are alike


@pytest.mark.parametrize("text", ["[6:]", "[3:3]", "[4:2]"])
def test_an_empty_slice_is_refused(save, text: str) -> None:
    with pytest.raises(DataError, match="holds no samples"):
        datasets.load(save(**GOOD) + text)


def test_guarantee_1_the_fingerprint_is_over_ids_and_contents(save) -> None:
    base = datasets.load(save(**GOOD)).fingerprint()
    assert base == datasets.load(save(**GOOD)).fingerprint()
    assert base != datasets.load(save(**GOOD | {"x_train": X[::-1]})).fingerprint()
    assert base != datasets.load(save(**GOOD | {"y_train": Y[[1, 0, 2, 3, 4, 5]]})).fingerprint()
    assert base != datasets.load(save(**GOOD) + "[:5]").fingerprint()
    assert base == datasets.load(save(**GOOD | {"x_test": X[4:]})).fingerprint()  # tests are each peer's own affair


def test_an_npz_that_lacks_arrays_is_refused_with_what_it_has(save) -> None:
    with pytest.raises(DataError, match="lacks arrays") as refused:
        datasets.load(save(x_train=X, labels=Y))
    assert refused.value.expected == "x_train, y_train, x_test, y_test"
    assert refused.value.got == "x_train, labels"


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        datasets.load(f"npz:{tmp_path}/nowhere.npz")
    for content in (b"", b"hello", b"PK\x03\x04 torn"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"is not an \.npz file"):
            datasets.load(f"npz:{tmp_path}/x.npz")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        datasets.load(f"npz:{tmp_path}/x.npy")


def test_an_npz_that_would_run_code_is_refused(save) -> None:
    with pytest.raises(DataError, match=r"is not an \.npz file of plain arrays: .*pickle"):
        datasets.load(save(**GOOD | {"y_train": np.array([object()] * 6)}))


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("y_train", Y[:5], "y_train is not one class number for each sample"),
        ("y_test", Y[:1], "y_test is not one class number for each sample"),
        ("y_train", np.eye(3)[Y], "y_train is not one class number for each sample"),
        ("y_train", Y - 1, "y_train holds labels that are not class numbers"),
        ("y_train", Y + 0.5, "y_train holds labels that are not class numbers"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(save, name: str, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        datasets.load(save(**GOOD | {name: labels}))


def test_module_and_function(save) -> None:
    data = datasets.load(f"{__name__}:good[1:]")
    assert data.y.tolist() == Y[1:].tolist()
    assert data.fingerprint() == datasets.load(save(**GOOD) + "[1:]").fingerprint()


def test_only_bytes_are_scaled_and_labels_may_stand_in_a_column() -> None:
    data = datasets.load(f"{__name__}:float_inputs")
    assert data.x.max() == 23.0
    assert data.x.dtype == data.test_x.dtype == np.float32
    assert data.y.tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minst", "no such data set .*mnist, npz:PATH, keras:NAME or module:function; got minst"),
        ("", "no such data set"),
        ("mnist[-5:]", "cannot find mnist"),
        ("nowhere:data", "cannot find nowhere:data: No module named"),
        (f"{__name__}:nothing", "cannot find .*:nothing: .*has no attribute"),
        (f"{__name__}:not_a_pair_of_pairs", "is not \\(\\(x_train, y_train\\), \\(x_test, y_test\\)\\)"),
    ],
)
def test_what_cannot_be_found_is_told(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        datasets.load(name)
