"""A Ray cluster: the way to it, and what each role of an experiment asks of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from entangled.errors import EntangledError, RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_parts import COORDINATOR, Placement

HEAD = "node:__internal_head__"
"""What Ray calls the resource that only the head node has."""


def connect(address: str, experiment: Experiment) -> Any:
    """Ray, connected to the cluster.

    Raises:
        EntangledError: Ray is not installed, or there is no cluster at `address`.
    """
    if address != "ray" and not address.startswith("ray://"):
        raise EntangledError("--on names no engine", expected="ray, or ray://HOST:PORT", got=address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # on a cluster that begins here, roles are no background work
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # else Ray's client would not show it
    try:
        import ray
    except ModuleNotFoundError:
        raise EntangledError("ray is missing: pip install 'entangled[ray]'") from None
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": _environment(experiment)}
    try:
        if address.startswith("ray://"):
            ray.init(address, **quiet)
            return ray
        try:
            ray.init("auto", **quiet)
        except ConnectionError:
            asked = math.ceil(sum(ask["num_cpus"] for ask in demands(experiment, 0).values()))
            ray.init("local", num_cpus=max(os.cpu_count() or 1, asked), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EntangledError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:300]}") from None
    return ray


def _has_token() -> bool:
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").exists()


def _environment(experiment: Experiment) -> dict[str, Any]:
    """What nodes get beside what is installed there: the user's own modules and data, which are in this folder."""
    named = [experiment.exchange.data, *(peer.model for peer in experiment.peers.values())]
    named += [peer.private.data or "" for peer in experiment.peers.values() if peer.private is not None]
    if not any(":" in name and not name.startswith("keras:") for name in named):
        return {}
    return {"working_dir": ".", "excludes": ["runs/", ".venv/", ".git/", "*.parquet", "*.arrow"]}


def roles(experiment: Experiment) -> tuple[str, ...]:
    """The coordinator, then the peers."""
    return (COORDINATOR, *experiment.peer_names)


def demands(experiment: Experiment, gpus: float) -> dict[str, dict[str, Any]]:
    """What each role asks of a node, as Ray takes it.

    Where the experiment does not say otherwise, a peer whose device is a GPU gets one, or that share of one which
    `memory` is; those whose device is `auto` share what the cluster has.

    Args:
        experiment: with its placements.
        gpus: that the cluster has.
    """
    free = [name for name, peer in experiment.peers.items() if peer.device == "auto"]
    shared = 1.0 / math.ceil(len(free) / gpus) if free and gpus >= 1 else 0.0
    found: dict[str, dict[str, Any]] = {}
    for role in roles(experiment):
        placement, peer = experiment.ray.get(role, Placement()), experiment.peers.get(role)
        wanted = 0.0
        if peer is not None and peer.device.startswith("gpu"):
            wanted = 1.0
        elif peer is not None and peer.device == "auto":
            wanted = shared
        if peer is not None and wanted and peer.memory is not None and peer.memory <= 1:
            wanted = peer.memory
        resources = dict(placement.resources)
        if peer is None and not resources and placement.node is None:
            resources = {HEAD: 0.001}  # whose loss would be the cluster's
        found[role] = {
            "num_cpus": _either(placement.num_cpus, 0.0 if peer is None else float(max(1, peer.threads))),
            "num_gpus": _either(placement.num_gpus, wanted),
            "resources": resources,
        }
    return found


def _either(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def runs_at_once(ray: Any, experiment: Experiment) -> int:
    """How many runs of an experiment the cluster holds at once, by its CPUs and GPUs."""
    there = ray.cluster_resources()
    asked = list(demands(experiment, there.get("GPU", 0.0)).values())
    room = [
        there.get(resource, 0.0) / wanted
        for resource, key in (("CPU", "num_cpus"), ("GPU", "num_gpus"))
        if (wanted := sum(ask[key] for ask in asked))
    ]
    return max(1, int(min(room, default=1)))


def strategy(ray: Any, experiment: Experiment, role: str) -> Any:
    """On which nodes a role may be, as Ray takes it; RunFailedError if the one that it must be on is not there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = experiment.ray.get(role, Placement()).node
    if wanted is None:
        return "DEFAULT" if role == COORDINATOR else "SPREAD"
    alive = [node for node in ray.nodes() if node["Alive"]]
    for node in alive:
        if wanted in (node["NodeManagerAddress"], node["NodeManagerHostname"], node["NodeID"]):
            return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    there = ", ".join(sorted(node["NodeManagerAddress"] for node in alive))
    raise RunFailedError(f"ray.{role}.node: the cluster has no such node", expected=there, got=wanted)


def here() -> tuple[str, str]:
    """The id and address of the node that an actor is on."""
    import ray

    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
