"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, content: Callable[[Path], object], suffix: str | None = None) -> None:
    """Have `content` write a temporary file, and put it in the place of `path`.

    Args:
        path: of the file.
        content: writes to the path that it is given.
        suffix: of the temporary file; by default that of `path`, which decides on the format for some writers.
    """
    temporary = temporary_for(path, suffix)
    content(temporary)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those that it is in, so that a power cut cannot take it away with what is in it."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


def temporary_for(path: Path, suffix: str | None = None) -> Path:
    """Where a file that is to become `path` is written."""
    return path.with_name(f".tmp-{path.name}{suffix or ''}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON."""
    write(path, lambda file: file.write_text(json.dumps(value, indent=2) + "\n", "utf-8"))


def sync(path: Path) -> None:
    """Return when a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_secret(path: Path, content: bytes) -> None:
    """Write what only this user may read: mode 0600 from the first byte on."""

    def secretly(file: Path) -> None:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)  # also where an interrupted write left the file behind
            stream.write(content)

    write(path, secretly)


def private_folder(path: Path) -> None:
    """Make a folder that only this user may look into (mode 0700); one that is there stays as it is."""
    make_folder(path.parent)
    if not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
        sync(path.parent)
