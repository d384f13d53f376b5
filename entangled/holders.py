"""Who may hold a certificate or token of a run, beside its peers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from entangled.errors import CredentialsError

log = logging.getLogger(__name__)

AUTHORITY, COORDINATOR, OPERATOR = "ca", "coordinator", "operator"
"""Whoever has the first one's key can be anybody; the last one may watch, but not take part."""


def check_peers(peers: Iterable[str]) -> None:
    """Raise CredentialsError if a peer has a name that means somebody else."""
    for name in peers:
        if name in (AUTHORITY, COORDINATOR, OPERATOR):
            raise CredentialsError("a peer of this name cannot be told from another holder: rename it", got=name)


def warn_if_readable(path: Path) -> None:
    """Warn about a secret that others on this machine can read."""
    if path.stat().st_mode & 0o077:
        log.warning("others on this machine can read %s: chmod 600 %s", path, path)
