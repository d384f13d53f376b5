"""One role's process on one node of a cluster, with its files; what an engine tells it to do from afar.

Knows no engine: every method takes and returns plain values, so that it can be an actor, or be called in a test.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from entangled.launch.processes import Role, stop

PIECE = 16 * 2**20
"""Bytes that are passed at once."""


class Place(NamedTuple):
    """Where a station is."""

    incarnation: str
    """Another one after every restart of the station itself."""
    node: str
    address: str
    """The node's, for others to connect to."""
    folder: str
    """The station's own: `run` in it is laid out as a run's folder, `given` is for what the role needs."""
    kept: bool
    """Whether a station was here before, whose files are still there."""


class State(NamedTuple):
    """How the role is."""

    incarnation: str
    started: bool
    exit_code: int | None
    """None while it runs; negative when a signal ended it."""
    why: str
    """One line on why it ended, or empty."""
    activity: bytes
    """The run's last `Activity`, serialized; empty where nobody watches."""


class Entry(NamedTuple):
    """One file of a run's folder."""

    size: int
    identity: tuple[int, int]
    """Changes when another file takes its place."""
    changed: int


class Station:
    """See the module.

    Args:
        tag: names the launch; two launches never share files.
        role: `coordinator`, or a peer's name.
        here: tells the node's id and its address.
    """

    def __init__(self, tag: str, role: str, here: Callable[[], tuple[str, str]]) -> None:
        self._node, self._address = here()
        self._folder = Path(tempfile.gettempdir()) / f"entangled-{tag}" / self._node / role
        self._kept = self._folder.exists()
        self._run = self._folder / "run"
        self._run.mkdir(parents=True, exist_ok=True)
        for folder in (self._folder.parents[1], self._folder.parent, self._folder):
            folder.chmod(0o700)  # keys may be in it
        self._incarnation = os.urandom(8).hex()
        self._role: Role | None = None
        self._watch: object = None
        self._activity = b""

    def place(self) -> Place:
        """Where it is."""
        return Place(self._incarnation, self._node, self._address, str(self._folder), self._kept)

    def free_port(self) -> int:
        """A port of the node that nobody listens on."""
        with socket.socket() as probe:
            probe.bind((self._address, 0))
            return probe.getsockname()[1]

    # ---- the role

    def start(self, name: str, arguments: list[str], log: str) -> None:
        """Start `python -m ARGUMENTS`, or start it again; the process that was there before is ended.

        Args:
            name: for messages.
            arguments: of the role.
            log: file for what it prints, in the station's folder.
        """
        self.stop()
        self._role = Role(name, arguments, self._folder / log)

    def watch(self, address: str, certs: str) -> None:
        """Follow the run at the coordinator at `address`, from now on, with the certificates in `certs`."""
        from entangled import grpc_settings

        grpc_settings.apply()
        from entangled import credentials
        from entangled.launch.local import Watch

        def observe(activity: object) -> None:
            self._activity = activity.SerializeToString()  # pyright: ignore[reportAttributeAccessIssue]

        self._watch = Watch(address, observe, credentials.load(self._folder / certs))

    def state(self) -> State:
        """How the role is."""
        role = self._role
        if role is None:
            return State(self._incarnation, False, None, "", self._activity)
        code = role.exit_code
        return State(self._incarnation, True, code, role.why() if code else "", self._activity)

    def stop(self) -> None:
        """End the role, if it runs."""
        if self._role is not None:
            stop([self._role])

    def clear(self) -> None:
        """End the role and remove the station's files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._folder.parent, self._folder.parents[1]):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    # ---- its files

    def files(self) -> dict[str, Entry]:
        """The files in `run`, by their path in it; not those that are only being written."""
        found: dict[str, Entry] = {}
        for path in sorted(self._run.rglob("*")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file() and not path.name.startswith(".tmp-"):
                name = path.relative_to(self._run).as_posix()
                found[name] = Entry(stat.st_size, (stat.st_dev, stat.st_ino), stat.st_mtime_ns)
        return found

    def read(self, name: str, offset: int) -> bytes | None:
        """A piece of a file in `run`, from `offset`; empty at its end, None if it is gone."""
        try:
            with (self._run / name).open("rb") as file:
                file.seek(offset)
                return file.read(PIECE)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, offset: int) -> None:
        """Put a piece of a file into the station's folder; at offset 0, the file begins anew."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (0 if offset else os.O_TRUNC), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(offset)
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file from the station's folder, if it is there."""
        (self._folder / name).unlink(missing_ok=True)
