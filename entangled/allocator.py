"""How the C library of this system hands out memory."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt`, as glibc's malloc.h numbers them."""
LARGEST = 8 * 1024 * 1024
"""Bytes of the largest block that is kept. Larger ones come as zeros from the system, which sparse predictions live on:
in the large arrays that they become, little is touched."""
KEPT = 256 * 1024 * 1024
"""Bytes of freed memory that a process keeps at most."""


def keep_freed() -> None:
    """Have freed memory kept for the next message, in this process; the user's own MALLOC_ variables win.

    glibc gives a freed block of a megabyte back to the system at once, which fills the next one with zeros again, page
    by page: with predictions of 256 × 1000, half of the time of an exchange. Other C libraries are left as they are.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGEST)
        mallopt(_TRIM_THRESHOLD, KEPT)
