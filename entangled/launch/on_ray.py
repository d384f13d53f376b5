"""A whole run on a Ray cluster: one actor for each role; the exchange between them stays gRPC.

Ray places the actors and starts again what dies, on another node if need be. Everything else is as on one machine: the
roles are the same processes, recovery is theirs, and the run's folder is on this side, kept up to date all the while.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entangled import atomic, certificates
from entangled.errors import RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_file import PLACEMENT, dumps, dumps_placement
from entangled.experiment_parts import COORDINATOR, Placement
from entangled.holders import OPERATOR
from entangled.launch.local import RESTARTS, Observer, interrupt
from entangled.launch.mirror import Mirror, restore
from entangled.launch.ray_cluster import connect, demands, here, roles, strategy
from entangled.launch.station import Place, State, Station
from entangled.v1 import exchange_pb2 as pb

POLL_SECONDS = 0.2
MIRROR_SECONDS = 1.0
STATE_SECONDS = 3.0
ANSWER_SECONDS = 60.0
"""How long an actor that is there may take to answer."""

PLACE_SECONDS = 300.0
"""How long a role may wait for a node that can take it."""

CERTIFICATE_DAYS = 365
"""Of the certificates that are made for this run alone, and lost with it."""

TOLD_SECONDS = 10.0
"""After so long, it is said what is waited for."""


def run(
    experiment: Experiment,
    folder: Path,
    address: str,
    observe: Observer,
    say: Callable[[str], None] = lambda _: None,
    *,
    resume: bool = False,
) -> None:
    """Run an experiment from beginning to end on a Ray cluster, or from where it was to the end.

    Args:
        experiment: what to run; `experiment.ray` says where.
        folder: the run's folder, on this side; made, or empty, or with `resume` that of an interrupted run.
        address: `ray` for the cluster that this machine is part of, else a local one; or `ray://HOST:PORT`.
        observe: is told what is going on, some times a second.
        say: is told what a person should know, a line at a time.
        resume: go on with the run in `folder`.

    Raises:
        RunFailedError: a role failed, or no node can take it; all others have been stopped, too.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunFailedError(
            f"{folder} is not empty; choose another --run-dir, or go on with the run in it: "
            f"entangled run --resume {folder} --on {address}"
        )
    launch: Launch | None = None
    ray = connect(address, experiment)
    previous = signal.signal(signal.SIGTERM, interrupt)  # after Ray has set one that aborts
    atomic.private_folder(folder)
    (folder / PLACEMENT).write_text(dumps_placement(experiment), "utf-8")
    try:
        launch = Launch(ray, experiment, folder, observe, say)
        launch.go()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
        if launch is not None:
            launch.end()
        ray.shutdown()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, previous)


class _Seat:
    """One role: its actor, and what is known of it."""

    def __init__(self, ray: Any, actor: Any, role: str, folder: Path, say: Callable[[str], None]) -> None:
        self._ray, self.actor, self.role = ray, actor, role
        self.name = role if role == COORDINATOR else f"peer {role}"
        self.place: Place | None = None
        self.done = False
        self.late = False
        """A peer that was started again when the coordinator was done."""
        self.restarts = 0
        self.activity = b""
        self.away_since: float | None = None
        self.told = False
        self.mirror = Mirror(self, folder, lambda line: self._heard(line, say))

    def call(self, method: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """Have the actor do something; Away if it is not there."""
        try:
            return self._ray.get(getattr(self.actor, method).remote(*arguments), timeout=seconds)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError, ConnectionError) as error:
            raise Away(str(error)) from None

    def files(self) -> Any:
        """See `mirror.Source`."""
        return self.call("files")

    def read(self, name: str, offset: int) -> bytes | None:
        """See `mirror.Source`."""
        return self.call("read", name, offset)

    def write(self, name: str, content: bytes, offset: int) -> None:
        """See `mirror.Target`."""
        self.call("write", name, content, offset)

    def _heard(self, line: str, say: Callable[[str], None]) -> None:
        if " WARNING " in line or " ERROR " in line:
            say(f"{self.name}: {line}")


class Away(Exception):  # noqa: N818
    """An actor is not there: not yet, not any more, or not for now."""


class Launch:
    """One run on a cluster that this process is connected to.

    Args:
        ray: the module.
        experiment: see `run`.
        folder: see `run`.
        observe: see `run`.
        say: see `run`.
    """

    def __init__(
        self, ray: Any, experiment: Experiment, folder: Path, observe: Observer, say: Callable[[str], None]
    ) -> None:
        self._ray, self._experiment, self._folder, self._say, self._observe = ray, experiment, folder, say, observe
        self._tag = uuid.uuid4().hex
        self._scratch = tempfile.TemporaryDirectory(prefix="entangled-")
        self._certs = Path(self._scratch.name) / "certs"
        self._demands = demands(experiment, ray.cluster_resources().get("GPU", 0.0))
        self._seats = {role: self._seat(role) for role in roles(experiment)}
        self._address = ""
        self._complete = 0
        self._observed = b""
        self._mirrored_at = 0.0

    # ---- the whole of it

    def go(self) -> None:
        """Until every role is done; RunFailedError as soon as one fails for good."""
        while not all(seat.done for seat in self._seats.values()):
            for seat in self._seats.values():
                self._look_after(seat)
            self._progress()
            if time.monotonic() - self._mirrored_at > MIRROR_SECONDS:
                self._copy()
            time.sleep(POLL_SECONDS)
        self._copy()

    def end(self) -> None:
        """Stop what still runs, copy what it wrote, and leave nothing on the nodes that are there."""
        there = [seat for seat in self._seats.values() if seat.place is not None and seat.away_since is None]
        self._each(there, lambda seat: seat.call("stop", seconds=10.0))
        self._copy()
        self._each(there, lambda seat: seat.call("clear", seconds=10.0))
        with contextlib.suppress(ConnectionError):  # the cluster itself is gone
            for seat in self._seats.values():
                self._ray.kill(seat.actor)
        self._scratch.cleanup()

    # ---- one role

    def _seat(self, role: str) -> _Seat:
        ask = self._demands[role]
        where = strategy(self._ray, self._experiment, role)
        options = {**ask, "max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": where}
        actor = self._ray.remote(Station).options(**options).remote(self._tag, role, here)
        return _Seat(self._ray, actor, role, self._folder, self._say)

    def _look_after(self, seat: _Seat) -> None:
        if seat.done:
            return
        try:
            state: State = seat.call("state", seconds=STATE_SECONDS if seat.place else POLL_SECONDS)
            if seat.place is None or state.incarnation != seat.place.incarnation:
                self._settle(seat)
            elif not state.started and self._address:
                self._begin(seat)
            elif state.exit_code is not None:
                self._ended(seat, state.exit_code, state.why)
        except Away as error:
            self._missing(seat, str(error))
        else:
            seat.away_since, seat.told = None, False
            seat.activity = state.activity or seat.activity

    def _ended(self, seat: _Seat, code: int, why: str) -> None:
        if code < 0 and seat.restarts < RESTARTS:
            seat.restarts += 1
            self._say(f"{seat.name} was killed ({why}); started again")
            self._begin(seat)
            return
        if seat.role == COORDINATOR and not code and any(s.late and not s.done for s in self._seats.values()):
            self._begin(seat)
            return
        while not seat.mirror.fetch():  # all that it wrote; it writes no more
            pass
        if code:
            first, why = self._first_to_fail(seat, why)
            raise RunFailedError(f"{first.name}: {why} (its log: {self._folder / _log(first.role)})")
        seat.done = True

    def _first_to_fail(self, seat: _Seat, why: str) -> tuple[_Seat, str]:
        """A peer that failed says more than the coordinator, which ends because of it."""
        if seat.role == COORDINATOR:
            for peer in (self._seats[name] for name in self._experiment.peer_names):
                with contextlib.suppress(Away):
                    state: State = peer.call("state", seconds=STATE_SECONDS)
                    if (state.exit_code or 0) > 0:
                        return peer, state.why
        return seat, why

    def _settle(self, seat: _Seat) -> None:
        """A seat has got a station, for the first time or another one: give it what it needs, and start the role."""
        before, place = seat.place, seat.call("place")
        seat.place = place
        try:
            self._furnish(seat, place)
        except Away:
            seat.place = before  # all of it again, where it comes up next
            raise
        self._say(f"{seat.name} {'runs' if before is None else 'goes on'} on node {place.address}")

    def _furnish(self, seat: _Seat, place: Place) -> None:
        moved = not place.kept
        if moved:
            prefix = f"peers/{seat.role}/"
            restore(self._folder, lambda name: _belongs(name, seat.role, prefix), seat)
        certificates.init(self._certs, self._experiment.peer_names, [place.address], CERTIFICATE_DAYS)
        for holder in (seat.role, *([OPERATOR] if seat.role == COORDINATOR else [])):
            for file in (self._certs / holder).iterdir():
                seat.write(f"given/{holder}/{file.name}", file.read_bytes(), 0)
        if seat.role != COORDINATOR:
            if self._address:
                self._begin(seat)
            return
        seat.write("given/experiment.toml", dumps(self._experiment).encode(), 0)
        if not moved and self._address:
            self._begin(seat)  # where it was, with all that it had: the peers come back to it by themselves
            return
        # What was not copied is lost. Peers that know of it are ended before they can speak of it, and go back.
        peers = [peer for peer in self._seats.values() if peer is not seat and peer.place is not None]
        self._each(peers, lambda peer: peer.call("stop"))
        self._address = f"{place.address}:{seat.call('free_port')}"
        self._begin(seat)
        self._each(peers, self._go_back)

    def _go_back(self, seat: _Seat) -> None:
        """Start a peer from a checkpoint that the copied log has reached."""
        seat.done = False
        restore(self._folder, lambda name: name.startswith(f"peers/{seat.role}/checkpoints/"), seat)
        self._begin(seat)

    def _each(self, seats: list[_Seat], work: Callable[[_Seat], object]) -> None:
        for seat in seats:
            with contextlib.suppress(Away):  # it will be settled when it is there again
                work(seat)

    def _begin(self, seat: _Seat) -> None:
        place = seat.place
        if place is None:
            return
        run = f"{place.folder}/run"
        if seat.role == COORDINATOR:
            source = f"{place.folder}/given/experiment.toml"
            arguments = ["coordinator", source, "--listen", self._address, "--run-dir", run]
        else:
            self._have_coordinator(seat)
            arguments = ["peer", seat.role, "--coordinator", self._address, "--run-dir", run]
            arguments += ["--device", "gpu" if self._demands[seat.role]["num_gpus"] else "cpu"]
        seat.mirror.forget()
        arguments += ["--certs", f"{place.folder}/given/{seat.role}"]
        seat.call("start", seat.name, arguments, f"run/{_log(seat.role)}")
        if seat.role == COORDINATOR:
            seat.call("watch", self._address, f"given/{OPERATOR}")

    def _have_coordinator(self, peer: _Seat) -> None:
        """A peer that is lost when the run is over, before its last files were copied, needs the coordinator again."""
        coordinator = self._seats[COORDINATOR]
        if coordinator.done:
            peer.late, coordinator.done = True, False
            self._begin(coordinator)

    def _missing(self, seat: _Seat, why: str) -> None:
        now = time.monotonic()
        if seat.away_since is None:
            seat.away_since = now
            if seat.place is not None:
                self._say(f"{seat.name} on node {seat.place.address} does not answer")
        waited, ask = now - seat.away_since, self._demands[seat.role]
        asks = ", ".join(f"{key.removeprefix('num_')} {value:g}" for key, value in _flat(ask).items() if value)
        where = self._experiment.ray.get(seat.role, Placement()).node
        asks += f"{', ' if asks else ''}node {where}" if where else ""
        if waited > TOLD_SECONDS and not seat.told:
            seat.told = True
            self._say(f"{seat.name} waits for a node of the cluster with room for it ({asks or 'nothing'})")
        if waited > PLACE_SECONDS:
            raise RunFailedError(
                f"no node of the cluster has taken {seat.name} within {PLACE_SECONDS:g} s; it asks for "
                f"{asks or 'nothing'}: change [ray.{seat.role}], or add a node. {' '.join(why.split())[:200]}"
            )

    # ---- all of them

    def _progress(self) -> None:
        content = self._seats[COORDINATOR].activity
        if content != self._observed:
            self._observed = content
            activity = pb.Activity.FromString(content)
            self._observe(activity)
            if activity.complete > self._complete:
                for seat in self._seats.values():
                    seat.restarts = 0
            self._complete = activity.complete

    def _copy(self) -> None:
        """Peers first: what the coordinator has is then never behind their checkpoints."""
        self._mirrored_at = time.monotonic()
        seats = [self._seats[role] for role in (*self._experiment.peer_names, COORDINATOR)]
        fetched: list[_Seat] = []
        for seat in seats:
            try:
                if seat.done or (seat.place is not None and seat.away_since is None and seat.mirror.fetch()):
                    fetched.append(seat)
            except Away:
                continue
        if seats[-1] in fetched:  # else checkpoints could be ahead of the log
            for seat in reversed(fetched):
                seat.mirror.commit()


def _log(role: str) -> str:
    return "coordinator.log" if role == COORDINATOR else f"peers/{role}/peer.log"


def _belongs(name: str, role: str, prefix: str) -> bool:
    if role == COORDINATOR:
        return not name.startswith("peers/") and name != PLACEMENT
    return name.startswith(prefix)


def _flat(ask: dict[str, Any]) -> dict[str, float]:
    return {**{key: value for key, value in ask.items() if key != "resources"}, **ask["resources"]}
