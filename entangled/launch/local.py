"""A whole run on this machine: coordinator and peers as processes, over a unix socket."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from entangled.errors import RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.launch.processes import Role, stop
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

Observer = Callable[[pb.Activity], None]
POLL_SECONDS = 0.1


def run(experiment: Experiment, folder: Path, observe: Observer) -> None:
    """Run an experiment from beginning to end.

    Args:
        experiment: what to run.
        folder: the run's folder; made, or empty.
        observe: is told what is going on, some times a second, on another thread.

    Raises:
        RunFailedError: a process failed or was stopped; all others have been stopped, too.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunFailedError(f"{folder} is not empty; choose another --run-dir")
    folder.mkdir(parents=True, exist_ok=True)
    roles: list[Role] = []
    previous = signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="entangled-") as sockets:
        try:
            source = Path(sockets) / "experiment.toml"
            source.write_text(dumps(experiment), "utf-8")
            address = f"unix:{sockets}/coordinator.sock"
            coordinate = ["coordinator", str(source), "--listen", address, "--run-dir", str(folder)]
            roles.append(Role("coordinator", coordinate, folder / "coordinator.log"))
            for name in experiment.peer_names:
                train = ["peer", name, "--coordinator", address, "--run-dir", str(folder)]
                roles.append(Role(f"peer {name}", train, folder / "peers" / name / "peer.log"))
            watching = threading.Thread(target=_watch, args=(address, observe), daemon=True)
            watching.start()
            _supervise(roles)
            watching.join(1)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
            stop(roles)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _supervise(roles: list[Role]) -> None:
    """Wait until every role is done; RunFailedError as soon as one is not."""
    while any(role.exit_code is None for role in roles):
        _check(roles)
        time.sleep(POLL_SECONDS)
    _check(roles)


def _check(roles: list[Role]) -> None:
    failed = [role for role in roles if role.exit_code]
    if failed:
        time.sleep(POLL_SECONDS)  # who failed first says most: a peer before the coordinator that tells the others
        failed = [role for role in roles if role.exit_code]
        first = min(failed, key=lambda role: (role.exit_code or 0, role.name == "coordinator"))
        raise RunFailedError(f"{first.name}: {first.why()} (its log: {first.log})")


def _watch(address: str, observe: Observer) -> None:
    with grpc.insecure_channel(address) as channel:
        stub: Any = CoordinatorStub(channel)
        try:
            for activity in stub.Watch(pb.WatchRequest(), wait_for_ready=True):
                observe(activity)
        except grpc.RpcError:
            return  # the supervisor knows more about why
