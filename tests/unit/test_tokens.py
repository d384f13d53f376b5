"""Tokens: what `init` makes and what the coordinator keeps of it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from entangled import tokens
from entangled.credentials import Credentials, load
from entangled.errors import CredentialsError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    tokens.init(tmp_path / "tokens", ["cnn", "mlp"])
    return tmp_path / "tokens"


def test_everybody_has_one_and_the_coordinator_knows_whose_it_is(made: Path) -> None:
    digests = tokens.read_digests(made / "coordinator.json")
    found = {name: tokens.read(made / f"{name}.token") for name in ("cnn", "mlp", "operator")}
    assert len(set(found.values())) == 3
    assert {name: digests.name(token) for name, token in found.items()} == {name: name for name in found}
    assert digests.name(found["cnn"][:-1] + "!") is None
    assert digests.name("") is None
    assert digests.name("é") is None


def test_the_coordinator_keeps_no_token(made: Path) -> None:
    kept = (made / "coordinator.json").read_text()
    assert all(tokens.read(path) not in kept for path in made.glob("*.token"))


def test_only_this_user_may_read_them(made: Path) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o600}


def test_what_is_there_is_kept_and_renewing_makes_all_anew(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.iterdir()}
    assert tokens.init(made, ["cnn", "mlp"]) == []
    assert {path: path.read_bytes() for path in made.iterdir()} == before
    assert {path.name for path in tokens.init(made, ["cnn", "mlp", "rnn"])} == {"rnn.token", "coordinator.json"}
    old = tokens.read(made / "cnn.token")
    assert len(tokens.init(made, ["cnn", "mlp"], renew=True)) == 4
    assert tokens.read_digests(made / "coordinator.json").name(old) is None
    assert set(json.loads((made / "coordinator.json").read_text())) == {"cnn", "mlp", "operator"}  # rnn is out


@pytest.mark.parametrize("name", ["coordinator", "operator"])
def test_a_peer_cannot_have_the_name_of_another_holder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CredentialsError, match=f"got {name}"):
        tokens.init(tmp_path / "tokens", [name, "cnn"])


def test_a_token_comes_from_a_file_or_the_environment_which_forgets_it(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn, mlp = tokens.read(made / "cnn.token"), tokens.read(made / "mlp.token")
    assert load(token_file=made / "cnn.token").metadata == (("authorization", f"Bearer {cnn}"),)
    monkeypatch.setenv("ENTANGLED_TOKEN", mlp + "\n")
    assert load() == Credentials(token=mlp)
    assert load() == Credentials()  # so that no process that this one starts has it
    monkeypatch.setenv("ENTANGLED_TOKEN", mlp)
    assert load(token_file=made / "cnn.token").token == cnn
    assert cnn not in repr(load(token_file=made / "cnn.token"))


@pytest.mark.parametrize("content", [b"", b"short", b"a" * 44, b"secret" * 7 + b"\xff", b"x" * 42 + b"\n\n\ny"])
def test_what_is_no_token_is_refused_without_showing_it(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.token"
    path.write_bytes(content)
    with pytest.raises(CredentialsError, match="holds no token") as refused:
        tokens.read(path)
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("ENTANGLED_TOKEN", content.decode("latin-1") or " ")
    with pytest.raises(CredentialsError, match="ENTANGLED_TOKEN holds no token"):
        load()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cnn": 1}', '{"cnn": "ab"}', '{"cnn": null}', "nonsense", "1"])
def test_what_is_not_the_coordinators_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "coordinator.json"
    path.write_text(content)
    with pytest.raises(CredentialsError, match="not the coordinator's file"):
        tokens.read_digests(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for read in (tokens.read, tokens.read_digests):
        with pytest.raises(CredentialsError, match=r"cannot read .*nothing: No such file"):
            read(tmp_path / "nothing")
