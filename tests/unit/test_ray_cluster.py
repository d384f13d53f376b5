"""What each role asks of a cluster; without one."""

from __future__ import annotations

import pytest

from entangled.errors import EntangledError, RunFailedError
from entangled.experiment_file import load
from entangled.launch.ray_cluster import HEAD, connect, demands, runs_at_once, strategy

HALF = "peers.cnn.memory=0.25"


@pytest.mark.parametrize(
    ("overrides", "gpus", "cnn", "mlp"),
    [
        ([], 0, 0, 0),
        ([], 1, 0.5, 0.5),
        ([], 2, 1, 1),
        ([], 8, 1, 1),
        ([HALF], 1, 0.25, 0.5),
        ([HALF], 0, 0, 0),
        (["peers.cnn.memory=4000"], 1, 0.5, 0.5),
        (["peers.cnn.device=cpu"], 1, 0, 1),
        (["peers.cnn.device='gpu:1'"], 1, 1, 1),
        (["peers.cnn.device=gpu", HALF], 0, 0.25, 0),
        (["ray.cnn.num_gpus=2"], 0, 2, 0),
        (["ray.mlp.num_gpus=0"], 1, 0.5, 0),
    ],
)
def test_gpus_follow_device_and_memory(overrides: list[str], gpus: float, cnn: float, mlp: float) -> None:
    asked = demands(load("smoke", overrides), gpus)
    assert (asked["cnn"]["num_gpus"], asked["mlp"]["num_gpus"]) == (cnn, mlp)
    assert asked["coordinator"]["num_gpus"] == 0


def test_three_peers_fit_on_two_gpus() -> None:
    asked = demands(load("smoke", ["peers.third.model=mlp"]), 2)
    assert [asked[name]["num_gpus"] for name in ("cnn", "mlp", "third")] == [0.5, 0.5, 0.5]


def test_cpus_follow_threads_and_the_coordinator_sits_on_the_head() -> None:
    asked = demands(load("smoke", ["peers.cnn.threads=4", "peers.mlp.threads=0", "ray.mlp.resources={fast=1}"]), 0)
    assert [asked[role]["num_cpus"] for role in ("coordinator", "cnn", "mlp")] == [0, 4, 1]
    assert [asked[role]["resources"] for role in ("coordinator", "cnn", "mlp")] == [{HEAD: 0.001}, {}, {"fast": 1}]
    placed = demands(load("smoke", ["ray.coordinator.node='10.0.0.1'", "ray.coordinator.num_cpus=2"]), 0)["coordinator"]
    assert (placed["num_cpus"], placed["resources"]) == (2, {})


class Ray:
    """A cluster of two nodes, of which one is lost."""

    def __init__(self, **resources: float) -> None:
        self._resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def nodes(self) -> list[dict[str, object]]:
        return [
            {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "one", "Alive": True},
            {"NodeID": "b" * 56, "NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "two", "Alive": False},
        ]


@pytest.mark.parametrize(
    ("resources", "runs"),
    [({"CPU": 8}, 4), ({"CPU": 3}, 1), ({"CPU": 1}, 1), ({"CPU": 8, "GPU": 2}, 1), ({"CPU": 8, "GPU": 8}, 4), ({}, 1)],
)
def test_a_study_fills_the_cluster(resources: dict[str, float], runs: int) -> None:
    assert runs_at_once(Ray(**resources), load("smoke")) == runs


def test_a_role_must_be_where_it_is_told_and_else_is_spread() -> None:
    pytest.importorskip("ray", reason="NOT RUN: Ray is not installed (pip install 'entangled[ray]')")
    placed = load("smoke", ["ray.cnn.node=one", "ray.mlp.node='10.0.0.2'"])
    assert strategy(Ray(), placed, "cnn").node_id == "a" * 56
    with pytest.raises(RunFailedError, match=r"ray.mlp.node: .*\(expected 10.0.0.1; got 10.0.0.2\)"):
        strategy(Ray(), placed, "mlp")
    assert [strategy(Ray(), load("smoke"), role) for role in ("coordinator", "cnn")] == ["DEFAULT", "SPREAD"]


def test_another_engine_is_refused() -> None:
    with pytest.raises(EntangledError, match="--on names no engine"):
        connect("slurm", load("smoke"))
