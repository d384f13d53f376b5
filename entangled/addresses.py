"""Addresses as gRPC takes them: `host:port`, `[ipv6]:port`, `unix:PATH`, and those with a scheme."""

from __future__ import annotations

import ipaddress


def is_local(address: str) -> bool:
    """Whether only processes of this machine can reach `address`; False where that cannot be told.

    >>> [is_local(a) for a in ("unix:/tmp/x.sock", "127.0.0.1:50051", "localhost:1", "[::1]:1", "ipv4:127.0.0.1:1")]
    [True, True, True, True, True]
    >>> [is_local(a) for a in ("0.0.0.0:50051", "[::]:1", "host:1", "127.0.0.1.example.com:1", ":1")]
    [False, False, False, False, False]
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    target = tcp(address)
    if target is None:
        return False
    try:
        return ipaddress.ip_address(target[0]).is_loopback
    except ValueError:
        return target[0] == "localhost"


def tcp(address: str) -> tuple[str, int] | None:
    """Host and port of a TCP address, or None.

    >>> tcp("host:50051"), tcp("[::1]:2"), tcp("ipv6:[::1]:2"), tcp("dns:///host:3"), tcp("unix:/x"), tcp("host")
    (('host', 50051), ('::1', 2), ('::1', 2), ('host', 3), None, None)
    """
    for scheme in ("ipv4:", "ipv6:", "dns:///", "dns:"):
        if address.startswith(scheme):
            address = address.removeprefix(scheme)
            break
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or "/" in host or not (port.isascii() and port.isdecimal()):
        return None
    return host, int(port)
