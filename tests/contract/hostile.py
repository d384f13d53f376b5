"""What a stranger can send without any of our code: bytes on a socket, HTTP/2 frames by hand."""

from __future__ import annotations

import socket
import struct

from entangled import addresses

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x6, 0x8
END_STREAM, END_HEADERS = 0x1, 0x4


def connect(address: str) -> socket.socket:
    """A socket to a coordinator, to write what one likes on."""
    if address.startswith("unix:"):
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.connect(address.removeprefix("unix:"))
    else:
        raw = socket.create_connection(addresses.tcp(address) or ("", 0))
    raw.settimeout(30)
    return raw


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(method: str, stream: int = 1) -> bytes:
    """The beginning of a call: literal header fields, without a table or Huffman codes (RFC 7541, section 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/entangled.v1.Coordinator/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def begin(size: int, stream: int = 1) -> bytes:
    """The head of a gRPC message that says it has `size` bytes, in a frame of its own."""
    return frame(DATA, 0, stream, b"\x00" + struct.pack(">I", size))


def hello() -> bytes:
    """What every HTTP/2 connection begins with."""
    return PREFACE + frame(SETTINGS, 0, 0)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
