"""Tokens: one secret for each peer and one for an operator; the coordinator has their digests only.

For runs without certificates, or where peers prove with a token who they are and TLS only encrypts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entangled import atomic
from entangled.errors import CredentialsError
from entangled.holders import COORDINATOR, OPERATOR, check_peers, warn_if_readable

TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
"""256 random bits in base64: nothing to guess, so that one round of a plain hash keeps it."""


@dataclass(frozen=True)
class Digests:
    """What the coordinator keeps: the SHA-256 of each holder's token."""

    by_name: Mapping[str, bytes]

    def name(self, token: str) -> str | None:
        """Whose token this is, or None. Takes as long for each, wherever they begin to differ."""
        digest, found = _digest(token), None
        for name, kept in self.by_name.items():
            if hmac.compare_digest(kept, digest):
                found = name
        return found


def init(folder: Path, peers: Sequence[str], *, renew: bool = False) -> list[Path]:
    """Make a token for each of `peers` and the operator where there is none, or for all where `renew` says so.

    Args:
        folder: gets `NAME.token` for each, and the coordinator's `coordinator.json`; made with mode 0700, all of mode
            0600.
        peers: the experiment's, by name.
        renew: make every token anew: the old ones are good for nothing then.

    Returns:
        The files that are new.

    Raises:
        CredentialsError: a peer has a name with another meaning, or a file that is there holds something else.
    """
    check_peers(peers)
    atomic.private_folder(folder)
    new: list[Path] = []
    digests: dict[str, str] = {}
    for name in (*peers, OPERATOR):
        path = folder / f"{name}.token"
        if renew or not path.exists():
            atomic.write_secret(path, (secrets.token_urlsafe(32) + "\n").encode())
            new.append(path)
        digests[name] = _digest(read(path)).hex()
    kept = (json.dumps(digests, indent=2) + "\n").encode()
    path = folder / f"{COORDINATOR}.json"
    if not path.exists() or path.read_bytes() != kept:
        atomic.write_secret(path, kept)
        new.append(path)
    return new


def read(path: Path) -> str:
    """A holder's token from its file; CredentialsError, which does not show it, if that is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None
    warn_if_readable(path)
    return check(content.decode("ascii", errors="replace").strip(), str(path))


def check(token: str, where: str) -> str:
    """The token, if it is one; else CredentialsError, which does not show it."""
    if not TOKEN.fullmatch(token):
        raise CredentialsError(f"{where} holds no token of entangled tokens init", got=f"{len(token)} characters")
    return token


def read_digests(path: Path) -> Digests:
    """The coordinator's file; CredentialsError if that is none."""
    try:
        content = json.loads(path.read_bytes())
        digests = {str(name): bytes.fromhex(digest) for name, digest in content.items()}
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        digests = {}
    if not digests or any(len(digest) != hashlib.sha256().digest_size for digest in digests.values()):
        raise CredentialsError(f"{path} is not the coordinator's file of entangled tokens init")
    return Digests(digests)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
