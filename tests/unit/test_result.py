"""What is printed at the end of a run: the table by class of peers with private data."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from entangled.cli.result import print_result
from entangled.experiment import Experiment

BY_CLASS = {"test_accuracy": 0.9, "test_accuracy_0": 1.0, "test_accuracy_1": 0.8, "alone_accuracy": 0.5}


def _printed(private: dict[str, object]) -> str:
    peer = {"model": "mlp", "private": {"data": "mnist[5000:]", **private}}
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "epochs": 1,
            "batch_size": 8,
            "baselines": ["alone"],
            "exchange": {"data": "mnist[:80]"},
            "peers": {"a": peer, "b": peer},
        }
    )
    peers = {name: {**BY_CLASS, "alone_accuracy_0": 1.0, "alone_accuracy_1": 0.0} for name in ("a", "b")}
    out = io.StringIO()
    summary = {"peers": peers, "missing": [], "exchanges": 10, "wall_seconds": 1.0, "final_weight": 0.5}
    print_result(Console(file=out, width=120), experiment, summary)
    return out.getvalue()


def test_classes_without_labels_are_in_brackets_where_the_experiment_names_them() -> None:
    printed = _printed({"classes": [0], "samples": 20})
    assert [line.split() for line in printed.splitlines() if "alone" in line] == [
        [peer, "alone", "50.0", "100", "[0]"] for peer in "ab"
    ]
    assert "[in brackets]: the peer has no labels for it." in " ".join(printed.split())


@pytest.mark.parametrize("private", [{"samples": 20}, {"samples": 20, "alpha": 0.1}])
def test_brackets_are_not_explained_where_there_can_be_none(private: dict[str, object]) -> None:
    printed = _printed(private)
    assert "[0]" not in printed
    assert "brackets" not in printed
