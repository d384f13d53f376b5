"""A copy of a run's folder, kept up to date from the stations that its parts are at, good enough to go on from.

Whoever is lost with a node goes on elsewhere from what was copied. For that, what is copied must fit together as if
every process had been killed at once: a checkpoint never without the exchanges before it, and `run.json` never without
what it speaks of. So one fetches from the peers, then from the coordinator, and then commits all of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from entangled import atomic
from entangled.launch.station import PIECE, Entry

GROWING = (".arrow", ".log")
"""Files that are only added to, as long as nobody starts their writer again; of others that change, all is copied."""

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


class _Fetched(NamedTuple):
    """What lies beside the place of a file, and waits for `commit`."""

    entry: Entry
    offset: int
    """Where in the file it belongs: at 0 it is all of it."""


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
        self._fetched: dict[str, _Fetched] = {}
        self._told = {_name(path, folder): path.stat().st_size for path in folder.rglob("*.log")}
        """How much of each log was heard, or was there before."""

    def fetch(self) -> bool:
        """Get what has changed, but put only what is printed in its place; False if something vanished meanwhile."""
        files = dict(self._source.files())
        try:
            description = files.pop(DESCRIPTION, None)
            if description is not None:  # before all else: it must not be ahead of the log
                self._stage(DESCRIPTION, description)
            begun = description is None or self._knows_the_data()
            for name in sorted(files, key=_order):
                if self._known.get(name) == files[name]:
                    continue
                if name in self._fetched and self._fetched[name].entry == files[name]:
                    continue
                if not begun and name.startswith("exchange/"):
                    continue
                if name.endswith(".log"):
                    self._print(name, files[name])
                else:
                    self._stage(name, files[name])
        except Gone:
            return False
        self._listed = files if description is None else {**files, DESCRIPTION: description}
        return True

    def commit(self) -> None:
        """Put what was fetched in its place, an epoch never before the one it follows, and remove what is gone."""
        for name in sorted(self._fetched, key=lambda name: (name == DESCRIPTION, name)):
            path, (entry, offset) = self._folder / name, self._fetched.pop(name)
            temporary = atomic.temporary_for(path)
            if offset:
                _append(temporary, path, offset)
            else:
                atomic.sync(temporary)
                temporary.replace(path)
            self._known[name] = entry
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
        """Fetch a file, or what was added to it, to beside its place."""
        path = atomic.temporary_for(self._folder / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        offset = self._stays(name, entry)
        self._fetched.pop(name, None)  # what was fetched before is written over now
        with path.open("wb") as file:
            self._fetch(name, file, offset)
        self._fetched[name] = _Fetched(entry, offset)

    def _print(self, name: str, entry: Entry) -> None:
        """Put what was printed in its place, for nobody goes on from it, and tell it."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        offset = self._stays(name, entry)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            self._fetch(name, file, offset)
        self._known[name] = entry
        self._tell(name, path)

    def _stays(self, name: str, entry: Entry) -> int:
        """How many bytes of the file that is in its place are good: what its source has now only goes on from them."""
        path, known = self._folder / name, self._known.get(name)
        grew = known is not None and known.identity == entry.identity and known.size <= entry.size
        return path.stat().st_size if name.endswith(GROWING) and grew and path.exists() else 0

    def _fetch(self, name: str, file: BinaryIO, offset: int) -> None:
        """Write what the source has of a file from `offset` on to `file`."""
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


def _append(temporary: Path, path: Path, offset: int) -> None:
    with temporary.open("rb") as added, path.open("r+b") as file:
        file.seek(offset)
        shutil.copyfileobj(added, file)
    atomic.sync(path)
    temporary.unlink()


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
