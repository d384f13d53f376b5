"""The launcher's processes: none outlives it, and each can say why it ended. Without training."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangled.errors import RunFailedError
from entangled.exchange_log import stream_path
from entangled.launch import local
from entangled.launch import processes as launcher
from entangled.launch.processes import Role, stop
from tests.faults.launched import kill, processes, until

IDLE = "tests.faults.idle"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = processes(str(tmp_path))
    kill(str(tmp_path))
    assert not left


def start(kind: str, folder: Path) -> Role:
    role = Role(f"peer {kind}", [IDLE, kind, str(folder)], folder / f"{kind}.log")
    until(lambda: role.exit_code is not None or "ready" in role.log.read_text(), f"{kind} to be ready")
    return role


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("error", "no memory left"),
        ("trace", "exit code 1: RuntimeError: unexpected"),
        ("silent", "exit code 3: it pri"),
    ],
)
def test_a_role_says_why_it_ended(tmp_path: Path, kind: str, why: str) -> None:
    role = start(kind, tmp_path)
    assert role.why().startswith(why)
    stop([role])  # nothing to do


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_role_that_a_signal_ended_says_which(tmp_path: Path, number: signal.Signals) -> None:
    role = start("idle", tmp_path)
    role.process.send_signal(number)
    until(lambda: role.exit_code is not None, "its end")
    assert role.exit_code == -number
    assert role.why() == f"ended by {number.name}"


def test_stopping_ends_the_willing_and_the_stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "STOP_SECONDS", 0.2)
    roles = [start("idle", tmp_path), start("stubborn", tmp_path)]
    stop(roles)
    assert [role.exit_code for role in roles] == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_launcher_that_is_killed_takes_its_roles_along(tmp_path: Path) -> None:
    script = f"""
import pathlib, signal
from entangled.launch.processes import Role
roles = [Role("r", ["{IDLE}", kind, "{tmp_path}"], pathlib.Path("{tmp_path}") / kind) for kind in ("idle", "stubborn")]
signal.pause()
"""
    launcher_process = subprocess.Popen([sys.executable, "-c", script])
    logs = [tmp_path / kind for kind in ("idle", "stubborn")]
    until(lambda: all(log.exists() and "ready" in log.read_text() for log in logs), "both roles to be ready")
    assert len(processes(str(tmp_path))) == 3
    launcher_process.kill()
    launcher_process.wait()
    until(lambda: not processes(str(tmp_path)), "the end of its roles")


class Watched:
    """Stands in for what follows the coordinator."""

    def __init__(self, **far: int) -> None:
        self.far = far

    def reached(self, role: str) -> int:
        return self.far.get(role, 0)


def test_a_role_that_is_killed_again_and_again_ends_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    roles = [start("idle", tmp_path), start("killed", tmp_path)]
    with pytest.raises(RunFailedError, match=r"peer killed: ended by SIGKILL \(its log: .*killed.log\)"):
        local.supervise(roles, Watched(), said.append)
    assert said == ["peer killed was killed (ended by SIGKILL); started again"] * local.RESTARTS
    stop(roles)


def test_a_role_that_fails_ends_the_run_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    roles = [start("idle", tmp_path), start("error", tmp_path)]
    with pytest.raises(RunFailedError, match="peer error: no memory left"):
        local.supervise(roles, Watched(), said.append)
    assert said == []
    stop(roles)


def test_a_role_that_is_killed_again_and_again_is_given_up_where_the_others_go_on(tmp_path: Path) -> None:
    """Though the others get on meanwhile: that is not its own progress."""

    class OthersGetOn(Watched):
        def reached(self, role: str) -> int:
            self.far["coordinator"] = self.far["peer idle"] = self.far["coordinator"] + 1
            return super().reached(role)

    said: list[str] = []
    roles = [start("idle", tmp_path), start("idle", tmp_path), start("killed", tmp_path)]
    roles[0].name = "coordinator"
    watched = OthersGetOn(**{"coordinator": 1, "peer killed": 7})

    def say(line: str) -> None:
        said.append(line)
        if line.endswith("go on without it"):
            raise StopIteration

    with pytest.raises(StopIteration):
        local.supervise(roles, watched, say, min_peers=1)
    assert said[: local.RESTARTS] == ["peer killed was killed (ended by SIGKILL); started again"] * local.RESTARTS
    assert said[local.RESTARTS].startswith("peer killed has failed: ended by SIGKILL (its log: ")
    stop(roles)


def test_a_role_that_gets_on_between_its_deaths_is_started_again_as_often_as_it_takes(tmp_path: Path) -> None:
    said: list[str] = []
    roles = [start("idle", tmp_path), start("killed", tmp_path)]
    watched = Watched(**{"peer killed": 0})

    def say(line: str) -> None:
        said.append(line)
        watched.far["peer killed"] += len(said) <= 3

    with pytest.raises(RunFailedError):
        local.supervise(roles, watched, say)
    assert len(said) == 3 + local.RESTARTS
    stop(roles)


def test_how_far_the_coordinator_is_stands_in_its_log(tmp_path: Path) -> None:
    """A coordinator that dies soon after every start is never asked in time."""
    watch = local.Watch(f"unix:{tmp_path}/nobody.sock", lambda _: None, run=tmp_path)
    far = [watch.reached("coordinator")]
    for epoch, content in ((1, b"x"), (1, b"xy"), (2, b"x")):
        stream = stream_path(tmp_path, epoch)
        stream.parent.mkdir(exist_ok=True)
        stream.write_bytes(content)
        far.append(watch.reached("coordinator"))
    assert far == sorted(set(far))
    assert watch.reached("peer cnn") == 0


@pytest.mark.parametrize(("min_peers", "goes_on"), [(1, True), (2, False)])
def test_a_role_that_fails_is_left_out_if_enough_are_left(tmp_path: Path, min_peers: int, goes_on: bool) -> None:
    said: list[str] = []
    roles = [start("done", tmp_path), start("done", tmp_path), start("error", tmp_path)]
    roles[0].name = "coordinator"
    if goes_on:
        local.supervise(roles, Watched(), said.append, min_peers)
        assert said == [f"peer error has failed: no memory left (its log: {roles[2].log}); the others go on without it"]
    else:
        with pytest.raises(RunFailedError, match="peer error: no memory left"):
            local.supervise(roles, Watched(), said.append, min_peers)
    stop(roles)


def test_nothing_goes_on_without_a_coordinator(tmp_path: Path) -> None:
    roles = [start("error", tmp_path), start("idle", tmp_path)]
    roles[0].name = "coordinator"
    with pytest.raises(RunFailedError, match="coordinator: no memory left"):
        local.supervise(roles, Watched(), lambda _: None, min_peers=1)
    stop(roles)
