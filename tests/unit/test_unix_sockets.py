"""Unix sockets are found among the open files and widened; nothing else is touched."""

from __future__ import annotations

import socket
import sys

import pytest

from entangled.unix_sockets import widen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the open files are listed by Linux alone")


def room(of: socket.socket) -> int:
    return of.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.mark.parametrize(
    ("address", "wider"), [("unix:/run/c.sock", True), ("unix:", True), ("ipv4:127.0.0.1:1", False)]
)
def test_where_the_other_end_is_a_unix_socket_more_fits(address: str, wider: bool) -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there, socket.socket(socket.AF_INET) as other:
        before = room(here), room(other)
        widen(address)
        assert (room(here) > before[0]) == wider
        assert room(other) == before[1]
        here.sendall(b"still open")
        assert there.recv(100) == b"still open"
