"""Certificates: making an authority with a certificate for every process of an experiment, and reading them.

Each holder has a folder of its own: `ca.pem` (whom it trusts), `cert.pem` (who it is) and `key.pem` (its secret). A
certificate's common name is its holder's identity; docs/security.md tells the whole story.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from entangled import atomic
from entangled.errors import CredentialsError
from entangled.holders import AUTHORITY, COORDINATOR, OPERATOR, check_peers, warn_if_readable

AUTHORITY_DAYS = 3650
BACKDATED = timedelta(days=1)
"""A certificate is valid from a day ago on, for hosts whose clocks are behind."""


@dataclass(frozen=True)
class Certificates:
    """A holder's folder, as gRPC takes it: PEM."""

    folder: Path
    authority: bytes
    """Whom the holder trusts."""
    certificate: bytes | None = None
    """The holder's own, with the chain to the authority; None for one that proves with a token who it is."""
    key: bytes | None = field(default=None, repr=False)
    name: str = ""
    """The certificate's common name."""


def read(folder: Path, now: datetime | None = None) -> Certificates:
    """Read and check a holder's folder.

    Args:
        folder: with `ca.pem`, and `cert.pem` and `key.pem` or neither.
        now: the time; by default, this moment.

    Raises:
        CredentialsError: a file cannot be read or is no PEM of its kind; key, certificate and authority do not belong
            together; the certificate is not valid now. No message holds anything of the key.
    """
    authority = _bytes(folder / "ca.pem")
    trusted = _parse(folder / "ca.pem", authority)
    if not (folder / "cert.pem").exists() and not (folder / "key.pem").exists():
        return Certificates(folder, authority)
    certificate, key = _bytes(folder / "cert.pem"), _bytes(folder / "key.pem")
    chain = _parse(folder / "cert.pem", certificate)
    own = chain[0]
    if _key(folder / "key.pem", key).public_key() != own.public_key():
        raise CredentialsError(f"{folder}: cert.pem and key.pem do not belong together")
    if not any(_issued(own, issuer) for issuer in [*chain[1:], *trusted]):
        raise CredentialsError(f"{folder}: cert.pem is not of the authority in ca.pem")
    now = now or datetime.now(UTC)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        raise CredentialsError(
            f"{folder}: cert.pem is not valid now; entangled certs init --renew makes a new one",
            expected=f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} … {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            got=f"{now:%Y-%m-%d %H:%M} UTC",
        )
    warn_if_readable(folder / "key.pem")
    return Certificates(folder, authority, certificate, key, name_of(own))


def name_of(certificate: x509.Certificate) -> str:
    """Whom a certificate names: its first common name, or empty."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses for which a certificate is good."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def load_one(path: Path) -> x509.Certificate:
    """The first certificate in a file; CredentialsError if there is none."""
    return _parse(path, _bytes(path))[0]


# ---- making them


def init(folder: Path, peers: Sequence[str], hosts: Iterable[str], days: int, *, renew: bool = False) -> list[Path]:
    """Make what is missing in `folder` of: an authority, and a holder's folder for coordinator, peers and operator.

    Args:
        folder: gets a folder for each; made with mode 0700, with keys of mode 0600.
        peers: the experiment's, by name.
        hosts: names and addresses under which the coordinator is reached; a coordinator whose certificate lacks one
            gets a new one.
        days: how long certificates are valid.
        renew: make every certificate anew, of the same authority.

    Returns:
        The folders that are new, or whose certificates are.

    Raises:
        CredentialsError: a peer's or host's name cannot stand in a certificate, or `folder` holds something else.
    """
    check_peers(peers)
    new: list[Path] = []
    atomic.private_folder(folder)
    if not (folder / AUTHORITY / "ca.pem").exists():
        _make_authority(folder / AUTHORITY)
        new.append(folder / AUTHORITY)
    authority = load_one(folder / AUTHORITY / "ca.pem")
    signer = _key(folder / AUTHORITY / "key.pem", _bytes(folder / AUTHORITY / "key.pem"))
    for name in (COORDINATOR, *peers, OPERATOR):
        place = folder / name
        wanted = list(dict.fromkeys([*_present_hosts(place), *hosts])) if name == COORDINATOR else []
        if not renew and (place / "cert.pem").exists() and set(wanted) <= set(_present_hosts(place)):
            continue
        _make_holder(place, name, wanted, days, authority, signer)
        new.append(place)
    return new


def _present_hosts(place: Path) -> list[str]:
    return hosts_of(load_one(place / "cert.pem")) if (place / "cert.pem").exists() else []


def _make_authority(place: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Entangled authority")])
    usage = _usage(signs_certificates=True)
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    atomic.private_folder(place)
    atomic.write_secret(place / "key.pem", _pem(key))
    atomic.write(place / "ca.pem", lambda file: file.write_bytes(_pem(certificate)))


def _make_holder(
    place: Path,
    name: str,
    hosts: list[str],
    days: int,
    authority: x509.Certificate,
    signer: CertificateIssuerPrivateKeyTypes,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # Only the coordinator may be a server: a peer's certificate must not let it pose as one.
    roles = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if name == COORDINATOR:
        roles.append(ExtendedKeyUsageOID.SERVER_AUTH)
    # A certificate without any alternative name would be good for a host of its common name.
    names = [_host(host) for host in hosts] or [x509.UniformResourceIdentifier(f"urn:entangled:{name}")]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_id = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .sign(signer, hashes.SHA256())  # pyright: ignore[reportArgumentType]  # our authority's key is of a curve
    )
    atomic.private_folder(place)
    atomic.write_secret(place / "key.pem", _pem(key))
    atomic.write(place / "ca.pem", lambda file: file.write_bytes(_pem(authority)))
    atomic.write(place / "cert.pem", lambda file: file.write_bytes(_pem(certificate)))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except (UnicodeError, ValueError):
        raise CredentialsError("a certificate cannot be for this host", expected="name or address", got=host) from None


def _pem(thing: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8
    return thing.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


# ---- reading them


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None


def _parse(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CredentialsError(f"{path} holds no certificate in PEM") from None


def _key(path: Path, pem: bytes) -> CertificateIssuerPrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)  # pyright: ignore[reportReturnType]
    except (ValueError, TypeError, UnsupportedAlgorithm):  # what it says may quote the key
        raise CredentialsError(f"{path} holds no private key in PEM, without a password") from None


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
