"""What a process shows at the coordinator's door, and what it asks to see: certificates, a token, both or neither."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from entangled import addresses
from entangled.errors import CredentialsError

if TYPE_CHECKING:
    from entangled.certificates import Certificates

TOKEN_KEY = "authorization"
SCHEME = "Bearer "
TOKEN_VARIABLE = "ENTANGLED_TOKEN"
Metadata = tuple[tuple[str, str], ...]

_WHY_SECONDS = 3.0


@dataclass(frozen=True)
class Credentials:
    """A caller's. Without any, calls are neither encrypted nor signed: enough on one host."""

    certificates: Certificates | None = None
    token: str = field(default="", repr=False)

    @property
    def metadata(self) -> Metadata:
        """What goes with every call."""
        return ((TOKEN_KEY, SCHEME + self.token),) if self.token else ()

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel to the coordinator at `address`."""
        if self.certificates is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._secure(), options=[*options, *_host(address)])

    def why_not(self, address: str) -> str:
        """Why nobody answered at `address`, as far as that can be seen from here; begins with a colon, or is empty.

        gRPC keeps to itself what is wrong with a certificate.
        """
        target = addresses.tcp(address)
        if target is None:
            return ""
        try:
            with socket.create_connection(target, _WHY_SECONDS) as raw:
                raw.settimeout(_WHY_SECONDS)
                return self._shake_hands(raw, target[0])
        except OSError:
            return ""

    def _shake_hands(self, raw: socket.socket, host: str) -> str:
        try:
            secure = self._context().wrap_socket(raw, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            return f": the certificate that it shows is not good: {error.verify_message}"
        except ssl.SSLError:
            return ": it speaks no TLS" if self.certificates else ""
        with secure, contextlib.suppress(OSError):
            if self.certificates and secure.recv(1):  # who refuses our certificate sends nothing more
                return ""
        if self.certificates is None:
            return ": it wants TLS; give the folder of this process's certificates (--certs)"
        return f": it refuses the certificate of {self.certificates.name or 'nobody'} in {self.certificates.folder}"

    def _secure(self) -> grpc.ChannelCredentials:
        own = self.certificates
        if own is None:
            raise CredentialsError("no certificates")
        return grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        own = self.certificates
        if own is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return context
        context.load_verify_locations(cadata=own.authority.decode("ascii", errors="replace"))
        if own.certificate is not None:
            with contextlib.suppress(ssl.SSLError, OSError):
                context.load_cert_chain(own.folder / "cert.pem", own.folder / "key.pem")
        return context


def _host(address: str) -> list[tuple[str, Any]]:
    """A socket of this host has no host's name that its certificate could be checked for; this host has one."""
    return [("grpc.ssl_target_name_override", "localhost")] if address.startswith("unix") else []


NOTHING = Credentials()


def load(certs: Path | None = None, token_file: Path | None = None) -> Credentials:
    """Read a caller's credentials.

    Args:
        certs: the folder of its certificates.
        token_file: of its token; without one, the environment variable ENTANGLED_TOKEN is taken, and taken away from
            whatever this process starts.

    Raises:
        CredentialsError: something is not what it should be. No message shows a secret.
    """
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if token_file is not None or token:
        from entangled import tokens

        token = tokens.read(token_file) if token_file else tokens.check(token.strip(), TOKEN_VARIABLE)
    if certs is None:
        return Credentials(token=token)
    from entangled import certificates

    return Credentials(certificates.read(certs), token)
