"""Files that only this user may read are so from the first byte on, whatever the process's mask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from entangled import atomic


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_secrets_are_private(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        atomic.private_folder(tmp_path / "above" / "folder")
        atomic.temporary_for(tmp_path / "above" / "folder" / "key").touch(0o666)  # of a writer that was killed
        atomic.write_secret(tmp_path / "above" / "folder" / "key", b"secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "above" / "folder") == 0o700
    assert mode(tmp_path / "above" / "folder" / "key") == 0o600
    assert [p.read_bytes() for p in (tmp_path / "above" / "folder").iterdir()] == [b"secret"]


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    atomic.private_folder(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o750
