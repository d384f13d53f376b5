"""Entangled learning: what both sides must agree on, taking part in a run, and the command line.

`join` and the names beside it are loaded when they are first asked for: `import entangled` itself loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entangled.participation.asynchronous import AsyncBatch, AsyncPeer, join_async
    from entangled.participation.joining import join
    from entangled.participation.peer import Batch, Peer
    from entangled.participation.seam import SoftTarget

__version__ = "0.1.0"

PROTOCOL_VERSION = 3
"""Raised when a change of the wire contract means that older peers or coordinators must not take part."""

__all__ = ["AsyncBatch", "AsyncPeer", "Batch", "Peer", "SoftTarget", "join", "join_async"]

_HOMES = {
    "join": "joining",
    "Peer": "peer",
    "Batch": "peer",
    "SoftTarget": "seam",
    "join_async": "asynchronous",
    "AsyncPeer": "asynchronous",
    "AsyncBatch": "asynchronous",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'entangled' has no attribute {name!r}")
    from entangled import grpc_settings

    grpc_settings.apply()
    return getattr(import_module(f"entangled.participation.{_HOMES[name]}"), name)
