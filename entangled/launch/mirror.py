"""A copy of a run's folder, kept up to date from the stations that its parts are at, good enough to go on from.

Whoever is lost with a node goes on elsewhere from what was copied. For that, what is copied must fit together as if
every process had been killed at once: a checkpoint never without the exchanges before it, and `run.json` never without
what it speaks of. So one fetches from the peers, then from the coordinator, and then commits all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from entangled import atomic
from entangled.launch.station import PIECE, Entry

GROWING = (".arrow", ".log")
"""Files that are only added to, as long as nobody starts their writer again; small ones are not worth it."""

DESCRIPTION = "run.json"


class Source(Protocol):
    """What is copied from: a station, in this process or another."""

    def files(self) -> Mapping[str, Entry]:
        """See `Station.files`."""
        ...

    def read(self, name: str, offset: int) -> bytes | None:
        """See `Station.read`."""
        ...


class Target(Protocol):
    """What is copied to."""

    def write(self, name: str, content: bytes, offset: int) -> None:
        """See `Station.write`."""
        ...


class Gone(Exception):  # noqa: N818
    """A file is not there any more: what was listed has changed meanwhile."""


class Mirror:
    """The copy of one station's part of the run's folder.

    Args:
        source: of the files.
        folder: the run's, on this side.
        heard: is told each whole line that a log has got.
    """

    def __init__(self, source: Source, folder: Path, heard: Callable[[str], None] = lambda _: None) -> None:
        self._source, self._folder, self._heard = source, folder, heard
        self._known: dict[str, Entry] = {}
        self._listed: dict[str, Entry] = {}
        self._fetched: dict[str, Entry] = {}
        """What lies beside its place, and waits for `commit`."""
        self._told = {_name(path, folder): path.stat().st_size for path in folder.rglob("*.log")}
        """How much of each log was heard, or was there before."""

    def fetch(self) -> bool:
        """Get what has changed, but put only what grows in its place; False if something vanished meanwhile."""
        files = dict(self._source.files())
        try:
            description = files.pop(DESCRIPTION, None)
            if description is not None:  # before all else: it must not be ahead of the log
                self._stage(DESCRIPTION, description)
            begun = description is None or self._knows_the_data()
            for name in sorted(files, key=_order):
                if self._known.get(name) == files[name] or self._fetched.get(name) == files[name]:
                    continue
                if not begun and name.startswith("exchange/"):
                    continue
                if name.endswith(GROWING):
                    self._grow(name, files[name])
                else:
                    self._stage(name, files[name])
        except Gone:
            return False
        self._listed = files if description is None else {**files, DESCRIPTION: description}
        return True

    def commit(self) -> None:
        """Put what was fetched in its place, and remove what is gone."""
        for name in sorted(self._fetched, key=lambda name: name == DESCRIPTION):
            path = self._folder / name
            atomic.sync(atomic.temporary_for(path))
            atomic.temporary_for(path).replace(path)
            self._known[name] = self._fetched.pop(name)
        for name in self._known.keys() - self._listed.keys():
            (self._folder / name).unlink(missing_ok=True)
            del self._known[name]

    def forget(self) -> None:
        """The role was started again and may have cut off what was torn: copy all of it anew."""
        self._known.clear()
        self._fetched.clear()

    def _knows_the_data(self) -> bool:
        """Whether the `run.json` that is in its place is good for exchanges."""
        path = self._folder / DESCRIPTION
        return path.exists() and "samples" in json.loads(path.read_bytes())

    def _stage(self, name: str, entry: Entry) -> None:
        """Fetch a file to beside its place."""
        path = atomic.temporary_for(self._folder / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fetch(name, path, 0)
        self._fetched[name] = entry

    def _grow(self, name: str, entry: Entry) -> None:
        path, known = self._folder / name, self._known.get(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        same = known is not None and known.identity == entry.identity and known.size <= entry.size
        self._fetch(name, path, path.stat().st_size if same and path.exists() else 0)
        self._known[name] = entry
        if name.endswith(".log"):
            self._tell(name, path)

    def _fetch(self, name: str, path: Path, offset: int) -> None:
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            while True:
                piece = self._source.read(name, offset)
                if piece is None:
                    raise Gone(name)
                file.write(piece)
                offset += len(piece)
                if len(piece) < PIECE:
                    return

    def _tell(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._told.get(name, 0))
            *lines, _ = file.read().split(b"\n")
        for line in lines:
            self._told[name] = self._told.get(name, 0) + len(line) + 1
            self._heard(line.decode(errors="replace"))


def _order(name: str) -> tuple[int, str]:
    """Checkpoints before the metrics that they count on."""
    return (0 if "/checkpoints/" in name else 1, name)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def restore(folder: Path, names: Callable[[str], bool], target: Target) -> None:
    """Put the files of a run's folder that `names` chooses to a station.

    Args:
        folder: the run's, on this side.
        names: of their paths in it.
        target: gets them in `run`.
    """
    for path in sorted(folder.rglob("*")):
        name = _name(path, folder)
        if not path.is_file() or path.name.startswith(".tmp-") or not names(name):
            continue
        with path.open("rb") as file:
            offset = 0
            while (piece := file.read(PIECE)) or offset == 0:
                target.write(f"run/{name}", piece, offset)
                offset += len(piece)
                if not piece:
                    break
