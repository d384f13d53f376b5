"""A peer that is lost when the coordinator has ended, before its own end was noted, gets the coordinator back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entangled.experiment_file import load
from entangled.launch import local, on_ray
from entangled.launch.station import Place, State


class Role:
    """A role whose exit codes, one for each time that it is started, are known."""

    def __init__(self, name: str, *codes: int) -> None:
        self.name, self.restarts, self.log = name, 0, Path(name)
        self._codes = list(codes)
        self._asked = False

    @property
    def exit_code(self) -> int | None:
        if not self._asked:  # it runs for a moment
            self._asked = True
            return None
        return self._codes[0]

    def restart(self) -> None:
        self.restarts += 1
        self._codes.pop(0)
        self._asked = False

    def why(self) -> str:
        return "ended by SIGKILL"


def test_guarantee_6_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0)
    watch = SimpleNamespace(reached=lambda _: 0)
    coordinator, peer, other = Role("coordinator", 0, 0), Role("peer cnn", -9, 0), Role("peer mlp", 0)
    roles: Any = [coordinator, other, peer]
    local.supervise(roles, watch, lambda _: None)
    assert [role.restarts for role in roles] == [1, 0, 1]


def test_nobody_is_started_again_who_ends_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0)
    roles: Any = [Role("coordinator", 0), Role("peer cnn", 0), Role("peer mlp", 0)]
    local.supervise(roles, SimpleNamespace(reached=lambda _: 0), lambda _: None)
    assert [role.restarts for role in roles] == [0, 0, 0]


class Actor:
    """A station that keeps nothing; its role ends well as soon as it is asked, or is lost with its node before."""

    def __init__(self, role: str) -> None:
        self.role, self.incarnation, self.started, self.left = role, "1", 0, False

    def __getattr__(self, method: str) -> Any:
        do = getattr(self, f"do_{method}") if hasattr(Actor, f"do_{method}") else _nothing
        return SimpleNamespace(remote=lambda *arguments: lambda: do(*arguments))

    def do_place(self) -> Place:
        return Place(self.incarnation, "node", "127.0.0.1", f"/nowhere/{self.role}", self.incarnation == "1")

    def do_start(self, *_: Any) -> None:
        self.started += 1

    def do_state(self) -> State:
        return State(self.incarnation, bool(self.started), 0 if self.started and self.left else None, "", b"")

    def do_files(self) -> dict[str, Any]:
        return {}

    def do_free_port(self) -> int:
        return 1


def _nothing(*_: Any) -> None:
    pass


class Ray:
    """The engine: actors in this process."""

    exceptions = SimpleNamespace(RayActorError=LookupError, GetTimeoutError=TimeoutError)

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self, _: str, role: str, *__: Any) -> Actor:
        return self.actors.setdefault(role, Actor(role))

    def get(self, call: Any, timeout: float) -> Any:
        return call()

    def kill(self, _: Actor) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {}


def test_guarantee_6_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="NOT RUN: Ray is not installed (pip install 'entangled[ray]')")
    monkeypatch.setattr(on_ray, "POLL_SECONDS", 0)
    ray, said, rounds = Ray(), list[str](), 0

    def follow(_: Any) -> None:
        """What happens in the cluster, between one look at the roles and the next."""
        nonlocal rounds
        rounds += 1
        coordinator, cnn, mlp = (ray.actors[role] for role in ("coordinator", "cnn", "mlp"))
        if rounds == 3:
            coordinator.left = cnn.left = True
        if rounds == 5:  # the node is lost that `mlp` was on, with what it had not copied
            mlp.incarnation, mlp.started = "2", 0
        if rounds == 6:
            assert coordinator.started == 2, "the peer is alone"
        if rounds == 9:  # that one waited for so long; the peer is still at it
            assert coordinator.started > 2
            mlp.left = True

    monkeypatch.setattr(on_ray.time, "sleep", follow)
    launch = on_ray.Launch(ray, load("smoke"), tmp_path, _nothing, said.append)
    try:
        launch.go()
    finally:
        launch.end()
    assert ray.actors["cnn"].started == 1
    assert ray.actors["mlp"].started == 1  # on the other node
    assert said[-1] == "peer mlp goes on on node 127.0.0.1"
