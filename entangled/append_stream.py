"""An Arrow stream that is only appended to; large amounts go past the system's page cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK = 4096
"""What direct writes are a multiple of, in the file and in memory: at least a disk's block, at most a page."""
HELD = 8 * 1024 * 1024
"""Bytes that are collected before they are written; a multiple of `BLOCK`."""
LARGE_PAGE = 2 * 1024 * 1024
"""Where Linux has large pages, they begin at a multiple of this on most processors; elsewhere it does no harm."""
DIRECT = 1024 * 1024
"""Bytes from which on a direct write is worth its wait for the disk."""
PIECES = 64 * 1024
"""Arrow writes many small pieces; so many bytes of them are collected by its own means, and not by ours."""


class AppendStream:
    """Appends record batches to a new file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Make the file, or empty the one that is there.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = _File(path)
        self._pieces = pa.BufferedOutputStream(pa.PythonFile(self._file, "w"), PIECES)
        self._batches = pa.ipc.new_stream(self._pieces, schema)

    def append(self, batch: pa.RecordBatch) -> None:
        """Append a record batch; it is on disk after `sync`. OSError: the disk's."""
        self._batches.write_batch(batch)

    def sync(self) -> None:
        """Return when all that was appended is on disk. OSError: the disk's."""
        self._pieces.flush()
        self._file.sync()

    def close(self) -> None:
        """End the stream; it is given to the system, but not synced. OSError: the disk's."""
        self._batches.close()
        self._pieces.close()


class _File:
    """A new file, as far as Arrow needs one to write to.

    What is read once, at the end of an epoch if ever, need not be copied into the page cache, page by page: with
    predictions of 256 × 1000 the system took longer for that than all else that the log does with them. So the whole
    blocks of large amounts are written from here to the disk (O_DIRECT), where the system and the file system can do
    that; parts of blocks, and small amounts, go through the cache.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._direct = _open_direct(path)
        self._size = 0
        self._held = _in_large_pages(HELD)
        self._begin = self._end = 0
        """What is held and not written; it begins as far into a block as the file ends."""

    def write(self, data: object) -> None:
        """Append the bytes of a buffer."""
        rest = np.frombuffer(data, np.uint8)  # pyright: ignore[reportCallIssue, reportArgumentType]
        while len(rest):
            part = rest[: HELD - self._end]
            self._held[self._end : self._end + len(part)] = part
            self._end += len(part)
            rest = rest[len(part) :]
            if self._end == HELD:
                self.flush()

    def flush(self) -> None:
        """Give what is held to the system."""
        first, last = -(-self._begin // BLOCK) * BLOCK, self._end // BLOCK * BLOCK
        if self._direct is not None and last - first >= DIRECT:
            self._put(self._file, first)
            try:
                self._put(self._direct, last)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)
                self._direct = None
        self._put(self._file, self._end)
        self._begin = self._end = self._size % BLOCK

    def sync(self) -> None:
        """Return when all that was appended is on disk."""
        self.flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Give what is held to the system, and close the file."""
        if not self.closed:
            self.flush()
            os.close(self._file)
            if self._direct is not None:
                os.close(self._direct)
            self._file = -1

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._file < 0

    def _put(self, file: int, end: int) -> None:
        """Write what is held up to `end`."""
        while self._begin < end:
            written = os.pwrite(file, self._held[self._begin : end], self._size)  # pyright: ignore[reportArgumentType]
            self._begin += written
            self._size += written


def _in_large_pages(size: int) -> npt.NDArray[np.uint8]:
    """Memory that begins with a page, a large one where the system has them: the disk reads it with less ado."""
    room = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the kernel has none
            room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    begin = -whole.ctypes.data % LARGE_PAGE
    return whole[begin : begin + size]


def _open_direct(path: Path) -> int | None:
    """The file for direct writes; None where there are none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):  # of a system, and of a file system
        return None
