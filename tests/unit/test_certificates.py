"""Certificates: what `init` makes, what `read` takes, and that no key is shown to anybody."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ExtendedKeyUsage
from cryptography.x509.oid import ExtendedKeyUsageOID

from entangled import certificates
from entangled.errors import CredentialsError

HOSTS = ["localhost", "gpu1.example.com", "10.0.0.5", "::1"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    certificates.init(tmp_path / "certs", ["cnn", "mlp"], HOSTS, 30)
    return tmp_path / "certs"


def test_everybody_gets_a_folder_that_reads(made: Path) -> None:
    assert {p.name for p in made.iterdir()} == {"ca", "coordinator", "cnn", "mlp", "operator"}
    for name in ("coordinator", "cnn", "mlp", "operator"):
        found = certificates.read(made / name)
        assert found.name == name
        assert found.authority == (made / "ca" / "ca.pem").read_bytes()


def test_only_this_user_may_read_the_secrets(made: Path) -> None:
    modes = {str(p.relative_to(made)): stat.S_IMODE(p.stat().st_mode) for p in (made, *made.rglob("*"))}
    assert {path: mode for path, mode in modes.items() if path.endswith("key.pem")} == {
        f"{name}/key.pem": 0o600 for name in ("ca", "coordinator", "cnn", "mlp", "operator")
    }
    assert {mode for path, mode in modes.items() if (made / path).is_dir()} == {0o700}


def test_the_coordinators_is_for_its_hosts_and_nobody_elses_is_for_any(made: Path) -> None:
    found = {name: certificates.load_one(made / name / "cert.pem") for name in ("coordinator", "cnn", "operator")}
    assert sorted(certificates.hosts_of(found["coordinator"])) == sorted(HOSTS)
    server = ExtendedKeyUsageOID.SERVER_AUTH
    for name in ("cnn", "operator"):  # with it, a peer could pose as the coordinator
        assert certificates.hosts_of(found[name]) == []
        assert server not in found[name].extensions.get_extension_for_class(ExtendedKeyUsage).value
    assert server in found["coordinator"].extensions.get_extension_for_class(ExtendedKeyUsage).value


def test_what_is_there_is_kept(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*.pem")}
    assert certificates.init(made, ["cnn", "mlp"], HOSTS[:1], 30) == []
    assert certificates.init(made, ["cnn", "mlp", "rnn"], [], 30) == [made / "rnn"]
    assert certificates.read(made / "rnn").name == "rnn"
    assert {path: path.read_bytes() for path in before} == before


def test_another_host_makes_a_new_certificate_for_the_coordinator_alone(made: Path) -> None:
    assert certificates.init(made, ["cnn", "mlp"], ["gpu2"], 30) == [made / "coordinator"]
    hosts = certificates.hosts_of(certificates.load_one(made / "coordinator" / "cert.pem"))
    assert sorted(hosts) == sorted([*HOSTS, "gpu2"])


def test_renewing_makes_all_anew_but_the_authority(made: Path) -> None:
    authority = (made / "ca" / "ca.pem").read_bytes()
    new = certificates.init(made, ["cnn", "mlp"], [], 30, renew=True)
    assert [path.name for path in new] == ["coordinator", "cnn", "mlp", "operator"]
    assert (made / "ca" / "ca.pem").read_bytes() == authority
    assert len(certificates.hosts_of(certificates.load_one(made / "coordinator" / "cert.pem"))) == len(HOSTS)


@pytest.mark.parametrize("name", ["ca", "coordinator", "operator"])
def test_a_peer_cannot_have_the_name_of_another_holder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CredentialsError, match=f"got {name}"):
        certificates.init(tmp_path / "certs", ["cnn", name], [], 30)
    assert not (tmp_path / "certs").exists()


def test_a_name_that_cannot_stand_in_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot be for this host"):
        certificates.init(tmp_path / "certs", ["cnn"], ["a..b"], 30)


def test_a_folder_with_the_authority_alone_is_for_tls_with_tokens(made: Path) -> None:
    found = certificates.read(made / "cnn")
    (made / "cnn" / "key.pem").unlink()
    (made / "cnn" / "cert.pem").unlink()
    only = certificates.read(made / "cnn")
    assert (only.authority, only.certificate, only.key) == (found.authority, None, None)


@pytest.mark.parametrize("days", [-3, 31])
def test_one_that_is_not_valid_now_is_refused_with_both_times(made: Path, days: int) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    with pytest.raises(CredentialsError, match=r"not valid now.*--renew") as refused:
        certificates.read(made / "cnn", now)
    assert f"{now:%Y-%m-%d}" in refused.value.got
    assert "…" in refused.value.expected


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("ca.pem", b"", "holds no certificate"),
        ("cert.pem", b"\xff\x00", "holds no certificate"),
        ("key.pem", b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n", "holds no private key"),
        ("key.pem", None, "cannot read"),
        ("cert.pem", None, "cannot read"),
        ("ca.pem", None, "cannot read"),
    ],
)
def test_files_that_are_something_else(made: Path, file: str, content: bytes | None, words: str) -> None:
    path = made / "cnn" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CredentialsError, match=words) as refused:
        certificates.read(made / "cnn")
    assert str(path) in str(refused.value)
    assert "secret" not in str(refused.value)


def test_files_that_do_not_belong_together(made: Path, tmp_path: Path) -> None:
    (made / "cnn" / "key.pem").write_bytes((made / "mlp" / "key.pem").read_bytes())
    with pytest.raises(CredentialsError, match=r"cert\.pem and key\.pem do not belong together"):
        certificates.read(made / "cnn")
    certificates.init(tmp_path / "other", ["cnn"], [], 30)
    (made / "mlp" / "ca.pem").write_bytes((tmp_path / "other" / "ca" / "ca.pem").read_bytes())
    with pytest.raises(CredentialsError, match="not of the authority"):
        certificates.read(made / "mlp")


def test_a_key_that_others_can_read_is_warned_about(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificates.read(made / "cnn")
    assert caplog.text == ""
    (made / "cnn" / "key.pem").chmod(0o644)
    certificates.read(made / "cnn")
    assert f"chmod 600 {made / 'cnn' / 'key.pem'}" in caplog.text


def test_no_key_is_shown(made: Path) -> None:
    found = certificates.read(made / "cnn")
    assert found.key is not None
    assert found.key.splitlines()[1].decode() not in repr(found)
