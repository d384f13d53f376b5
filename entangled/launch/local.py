"""A whole run on this machine: coordinator and peers as processes, over a unix socket."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

from entangled import atomic
from entangled.credentials import NOTHING, Credentials
from entangled.errors import RunFailedError
from entangled.exchange_log import partitions
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.launch.processes import Role, stop
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

Observer = Callable[[pb.Activity], None]
POLL_SECONDS = 0.1
RESTARTS = 5
"""How often a process that is killed is started again without having got further in between."""
COORDINATOR = "coordinator"


def run(
    experiment: Experiment,
    folder: Path,
    observe: Observer,
    say: Callable[[str], None] = lambda _: None,
    *,
    resume: bool = False,
) -> None:
    """Run an experiment from beginning to end, or from where it was to the end.

    A process that is killed by a signal is started again and goes on where it was; one that ends with an error ends the
    run, or is left out where the experiment goes on without missing peers.

    Args:
        experiment: what to run.
        folder: the run's folder; made, or empty, or with `resume` that of an interrupted run.
        observe: is told what is going on, some times a second, on another thread.
        say: is told what a person should know, a line at a time.
        resume: go on with the run in `folder`.

    Raises:
        RunFailedError: a process failed or was stopped; all others have been stopped, too.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunFailedError(
            f"{folder} is not empty; choose another --run-dir, or go on with the run in it: "
            f"entangled run --resume {folder}"
        )
    atomic.private_folder(folder)
    roles: list[Role] = []
    previous = signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix="entangled-") as sockets:
        try:
            source = Path(sockets) / "experiment.toml"
            source.write_text(dumps(experiment), "utf-8")
            address = f"unix:{sockets}/coordinator.sock"
            coordinate = ["coordinator", str(source), "--listen", address, "--run-dir", str(folder)]
            roles.append(Role(COORDINATOR, coordinate, folder / "coordinator.log"))
            shares = {_called(names): names for names in experiment.shares}
            for number, (called, names) in enumerate(shares.items(), 1):
                train = ["peer", *names, "--coordinator", address, "--run-dir", str(folder)]
                alone = folder / "peers" / names[0] / "peer.log"
                log = folder / f"process-{number}.log" if len(names) > 1 else alone
                roles.append(Role(called, train, log, len(names)))
            role_of = {name: called for called, names in shares.items() for name in names}
            watch = Watch(address, observe, roles=role_of, run=folder)
            try:
                supervise(roles, watch, say, experiment.exchange.least if experiment.exchange.continues else None)
            except RunFailedError as error:
                raise RunFailedError(f"{error}{_how_to_go_on(folder)}") from None
            watch.join()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
            stop(roles)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, previous)


def _called(names: Sequence[str]) -> str:
    """What the process of these peers is called."""
    if len(names) == 1:
        return f"peer {names[0]}"
    return f"peers {', '.join(names)}" if len(names) < 4 else f"the {len(names)} peers {names[0]} … {names[-1]}"


def interrupt(*_: object) -> None:
    """A handler that makes of another signal what Ctrl-C is."""
    raise KeyboardInterrupt


def _how_to_go_on(folder: Path) -> str:
    """What to do after a failure, if something has been exchanged that is worth it."""
    begun = any((folder / "exchange").glob("epoch=*"))
    return f"; all that was exchanged is saved, to go on: entangled run --resume {folder}" if begun else ""


class Progressing(Protocol):
    """Knows how far every role is."""

    def reached(self, role: str) -> int:
        """How far a role is, by its name; more is further."""
        ...


def supervise(roles: list[Role], watch: Progressing, say: Callable[[str], None], min_peers: int | None = None) -> None:
    """Wait until every role is done, and start again what is killed.

    Args:
        roles: all that run; the coordinator is called `coordinator`.
        watch: tells how far they are.
        say: is told what a person should know.
        min_peers: with so many peers the run goes on without those that fail; None ends it as soon as one fails.

    Raises:
        RunFailedError: a role failed that the run cannot do without.
    """
    roles, reached, late = [*roles], dict[str, int](), set[str]()
    while any(role.exit_code != 0 for role in roles):
        for role in roles:
            if (role.exit_code or 0) < 0 and (far := watch.reached(role.name)) > reached.get(role.name, 0):
                reached[role.name], role.restarts = far, 0
        _start_again(roles, say, late)
        _check(roles, say, min_peers)
        time.sleep(POLL_SECONDS)


def _start_again(roles: list[Role], say: Callable[[str], None], late: set[str]) -> None:
    """Start again what was killed; with a peer that was killed when the run was over, the coordinator that it needs."""
    coordinator = next((role for role in roles if role.name == COORDINATOR), None)
    over = coordinator is not None and coordinator.exit_code == 0
    for role in roles:
        if (role.exit_code or 0) < 0 and role.restarts < RESTARTS:
            say(f"{role.name} was killed ({role.why()}); started again")
            role.restart()
            late |= {role.name} if over else set()
    if coordinator is not None and over and any(role.name in late and role.exit_code is None for role in roles):
        coordinator.restart()


def _check(roles: list[Role], say: Callable[[str], None], min_peers: int | None) -> None:
    if not _failed(roles):
        return
    time.sleep(POLL_SECONDS)  # who failed first says most: a peer before the coordinator that tells the others
    failed = _failed(roles)
    first = min(failed, key=lambda role: role.name == COORDINATOR)
    left = sum(role.peers for role in roles if role not in failed and role.name != COORDINATOR)
    if min_peers is None or left < min_peers or any(role.name == COORDINATOR for role in failed):
        raise RunFailedError(f"{first.name}: {first.why()} (its log: {first.log})")
    for role in failed:
        say(f"{role.name} has failed: {role.why()} (its log: {role.log}); the others go on without it")
        roles.remove(role)


def _failed(roles: list[Role]) -> list[Role]:
    """The roles that ended with an error, or are killed again and again."""
    codes = [(role, role.exit_code or 0) for role in roles]
    return [role for role, code in codes if code > 0 or (code < 0 and role.restarts >= RESTARTS)]


class Watch:
    """Follows the coordinator's Watch on a thread, also when it was away.

    `roles` says which role is a peer's, by the peer's name, where it is not that peer's alone. How far the coordinator
    is, its log in `run` tells: one that dies soon after every start is never followed for long enough.
    """

    def __init__(
        self,
        address: str,
        observe: Observer,
        shown: Credentials = NOTHING,
        roles: Mapping[str, str] | None = None,
        run: Path | None = None,
    ) -> None:
        self._roles = roles or {}
        self._run = run
        self._reached: dict[str, int] = {}
        self._address, self._shown = address, shown
        self._observe = observe
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def reached(self, role: str) -> int:
        """How far a role is; more is further."""
        return _recorded(self._run) if role == COORDINATOR and self._run else self._reached.get(role, 0)

    def join(self) -> None:
        """Wait a moment for the last activity."""
        self._thread.join(1)

    def _follow(self) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        with self._shown.channel(self._address, options) as channel:
            stub: Any = CoordinatorStub(channel)
            finished = False
            while not finished:
                try:
                    for activity in stub.Watch(pb.WatchRequest(), wait_for_ready=True, metadata=self._shown.metadata):
                        finished = activity.finished
                        self._note(activity)
                        self._observe(activity)
                except grpc.RpcError:
                    time.sleep(POLL_SECONDS)  # the supervisor knows more about why

    def _note(self, activity: pb.Activity) -> None:
        for peer in activity.peers:
            role = self._roles.get(peer.name, f"peer {peer.name}")
            self._reached[role] = max(self._reached.get(role, 0), (peer.epoch << 32) + peer.step)


def _recorded(run: Path) -> int:
    """Grows with what is in a run's log, within an epoch and from one to the next."""
    try:
        epoch, path = partitions(run)[-1]
        return (epoch << 48) + path.stat().st_size
    except (IndexError, FileNotFoundError):  # there is none yet, or it is just being put in a partition's place
        return 0
