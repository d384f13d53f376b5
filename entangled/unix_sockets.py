"""How much may be on its way on this process's unix sockets."""

from __future__ import annotations

import contextlib
import os
import socket

SEND_BYTES = 4 * 1024 * 1024
"""Room for a few large predictions; the system gives what it allows (on Linux, twice `net.core.wmem_max`)."""
_OPEN = "/proc/self/fd"


def widen(address: str) -> None:
    """Let much be written at once to unix sockets, if `address`, of who is at the other end, is of one.

    Else a message of a megabyte is written in half a dozen pieces, and both sides wake up for each. gRPC opens the
    sockets and has no option for it, so they are looked for among the open files. Where they are not listed, as on
    other systems than Linux, all stays as it is.
    """
    if not address.startswith("unix"):
        return
    with contextlib.suppress(OSError):
        for number in os.listdir(_OPEN):
            with contextlib.suppress(OSError):  # closed meanwhile, or no socket
                if os.readlink(f"{_OPEN}/{number}").startswith("socket:"):
                    _widen(int(number))


def _widen(file: int) -> None:
    with socket.socket(fileno=os.dup(file)) as found:  # a copy, so that closing it closes nothing
        if found.family == socket.AF_UNIX and found.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < SEND_BYTES:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
