"""Where a coordinator may listen, and what is asked at its door."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.doors import Lock, check_listen, check_name
from entangled import tokens
from entangled.certificates import Certificates
from entangled.errors import CredentialsError, MembershipError
from entangled.tokens import Digests

OPEN = Lock()
TOKENS = Lock(tokens=Digests({"cnn": bytes(32)}))
CERTIFICATES = Lock(Certificates(Path("certs"), b""))
ELSEWHERE = ["0.0.0.0:1", "[::]:1", "10.0.0.5:1", "host:1", "127.0.0.1.example.com:1", "vsock:1:2", "nonsense"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x.sock", "127.1.2.3:1"])
@pytest.mark.parametrize("insecure", [True, False])
def test_this_host_may_be_open(address: str, insecure: bool, caplog: pytest.LogCaptureFixture) -> None:
    check_listen(address, OPEN, insecure=insecure)
    assert caplog.text == ""


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_is_refused_unless_insecure_which_warns(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CredentialsError, match=r"give --certs or --tokens .*, or --insecure"):
        check_listen(address, OPEN, insecure=False)
    assert caplog.text == ""
    check_listen(address, OPEN, insecure=True)
    assert f"whoever reaches {address} can join" in caplog.text


def test_with_tokens_it_warns_that_nothing_is_encrypted_and_with_certificates_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_listen("0.0.0.0:1", CERTIFICATES, insecure=False)
    assert caplog.text == ""
    check_listen("0.0.0.0:1", TOKENS, insecure=False)
    assert "nothing encrypts" in caplog.text


def test_who_calls_is_who_the_token_says(tmp_path: Path) -> None:
    tokens.init(tmp_path / "tokens", ["cnn", "mlp"])
    lock = Lock(tokens=tokens.read_digests(tmp_path / "tokens" / "coordinator.json"))
    token = tokens.read(tmp_path / "tokens" / "mlp.token")
    assert lock.caller({"authorization": f"Bearer {token}"}, {}) == "mlp"
    for metadata in ({}, {"authorization": token}, {"authorization": "Bearer "}, {"authorization": f"Bearer {token}x"}):
        with pytest.raises(MembershipError) as refused:
            lock.caller(metadata, {"x509_common_name": [b"mlp"]})
        assert token not in str(refused.value)


def test_who_calls_is_who_the_certificate_names() -> None:
    assert CERTIFICATES.caller({}, {"x509_common_name": [b"cnn"]}) == "cnn"
    with pytest.raises(MembershipError, match="names its holder"):
        CERTIFICATES.caller({"authorization": "Bearer x"}, {})


def test_nobody_is_asked_at_an_open_door() -> None:
    assert OPEN.caller({}, {}) is None


def test_nobody_speaks_as_another_and_both_names_are_said() -> None:
    check_name("cnn", "cnn")
    for peer in ("mlp", "", "cnn "):
        with pytest.raises(MembershipError, match="cnn may not speak as") as refused:
            check_name("cnn", peer)
        assert (refused.value.expected, refused.value.got) == ("cnn", peer or "no name")
