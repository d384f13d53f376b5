"""Any bytes in the place of any file that is read: what it should be, or refused by an error of ours; never a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.run_folder import RunFolder
from coordinator.session import Session
from entangled import certificates, datasets, experiment_file, tokens
from entangled.errors import EntangledError
from entangled.exchange_log import genesis
from entangled.experiment_file import dumps
from entangled.log.reader import open_run
from entangled.log.verify import verify
from entangled.log_writer import Writer
from entangled.participation import checkpoint
from tests import logs
from tests.support import data, experiment, raised

Damage = Callable[[bytes], bytes]
any_file = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Makes other bytes of a file's: some changed, left out or put in; its end cut off; or anything at all."""
    kind = draw(st.sampled_from(["edit", "cut", "anything"]))
    if kind == "anything":
        content = draw(st.binary(max_size=300))
        return lambda _: content
    share = draw(st.floats(0, 1))
    if kind == "cut":
        return lambda before: before[: int(share * len(before))]
    edits = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=8)), min_size=1, max_size=4))

    def edit(before: bytes) -> bytes:
        content = bytearray(before)
        for share, length, put in edits:
            place = int(share * len(content))
            content[place : place + length] = put
        return bytes(content)

    return edit


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FINGERPRINT = {"started_at": 1.5, "samples": 10, "classes": 3, "ids_digest": "ab", "contents_digest": ""}
FIELDS = st.sampled_from(["run_id", "finals", *FINGERPRINT, "more"])


def restart(folder: Path) -> None:
    """What a coordinator does with a run's folder before it serves."""
    toml = dumps(experiment())
    Session(experiment(), 0.0, RunFolder(folder, toml).restored(0, ()))


@any_file
@given(damages())
def test_any_bytes_as_run_json(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "run.json"
    path.unlink(missing_ok=True)
    folder = RunFolder(tmp_path, dumps(experiment()))
    folder.started(data())
    folder.departed("a", {"loss": 1.0})
    path.write_bytes(damage(path.read_bytes()))
    raised(EntangledError, restart, tmp_path)


@any_file
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.sets(FIELDS, max_size=2))
def test_any_json_as_run_json(tmp_path: Path, changes: dict[str, Any], without: set[str]) -> None:
    values = {"run_id": "x", "finals": {"a": {"loss": 1.0}}, **FINGERPRINT, **changes}
    (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in values.items() if k not in without}))
    error = raised(EntangledError, restart, tmp_path)
    assert error is None or "run.json" in str(error)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    certificates.init(folder / "certs", ["a"], [], 30)
    tokens.init(folder / "tokens", ["a"])
    return folder


@any_file
@given(st.sampled_from(["ca.pem", "cert.pem", "key.pem"]), damages())
def test_any_bytes_as_a_certificate_or_key_and_no_key_is_shown(
    secrets: Path, tmp_path: Path, file: str, damage: Damage
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(secrets / "certs" / "a", folder, dirs_exist_ok=True)
    kept = (folder / "key.pem").read_text().splitlines()[1]
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    error = raised(EntangledError, certificates.read, folder)
    assert error is None or not any(kept[i : i + 8] in str(error) for i in range(0, len(kept) - 8, 4))
    raised(EntangledError, certificates.load_one, folder / file)


@any_file
@given(damages())
def test_any_bytes_as_a_token_which_is_not_shown(secrets: Path, tmp_path: Path, damage: Damage) -> None:
    kept = (secrets / "tokens" / "a.token").read_text().strip()
    (tmp_path / "a.token").write_bytes(damage(kept.encode()))
    error = raised(EntangledError, tokens.read, tmp_path / "a.token")
    assert error is None or not any(kept[i : i + 8] in str(error) for i in range(0, len(kept) - 8, 4))


@any_file
@given(st.one_of(damages(), JSON.map(lambda value: lambda _: json.dumps(value).encode())))
def test_any_bytes_as_the_coordinators_tokens(secrets: Path, tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "coordinator.json"
    path.write_bytes(damage((secrets / "tokens" / "coordinator.json").read_bytes()))
    raised(EntangledError, tokens.read_digests, path)


@any_file
@given(damages())
def test_any_bytes_as_an_experiment(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(damage(experiment_file.shipped()["smoke"].encode()))
    error = raised(EntangledError, experiment_file.load, str(path))
    assert error is None or str(path) in str(error)


@any_file
@given(damages())
@pytest.mark.filterwarnings("ignore")  # of numpy's, about what it finds in an array's header
def test_any_bytes_as_a_data_set(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "x.npz"
    (x, y), (test_x, test_y) = logs.digits()
    np.savez(path, x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    path.write_bytes(damage(path.read_bytes()))
    raised(EntangledError, datasets.load, f"npz:{path}")
    raised(EntangledError, datasets.load_unlabelled, f"npz:{path}", 3)


def test_a_data_set_runs_nothing(tmp_path: Path) -> None:
    """A pickle in an `.npz` would be a program of whoever made the file."""
    path = tmp_path / "x.npz"
    np.savez(path, **{name: np.array([_Program()]) for name in ("x_train", "y_train", "x_test", "y_test")})
    error = raised(EntangledError, datasets.load, f"npz:{path}")
    assert "is not an .npz file of plain arrays" in str(error)


class _Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("somebody else's code has run",)


@any_file
@given(damages())
def test_any_bytes_as_a_checkpoint(tmp_path: Path, damage: Damage) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    for index in (1, 2):
        state = {"weights": [np.arange(6.0), np.arange(2)], "epoch": index}
        checkpoint.save(tmp_path / "checkpoints", "a", checkpoint.Checkpoint("run", index, {"loss": 1.0}, state))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    found = checkpoint.load(tmp_path / "checkpoints", "run", 10)
    assert found is not None
    assert found.index in (1, 2)  # the one before it, unless the damage was none


@any_file
@given(st.data(), damages())
@pytest.mark.parametrize("state", ["finished", "killed"])
def test_any_bytes_as_a_file_of_the_log(tmp_path: Path, state: str, data: st.DataObject, damage: Damage) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(_made(tmp_path, state), tmp_path / "run")
    files = sorted(p for p in (tmp_path / "run").rglob("*") if p.is_file() and "exchange" in str(p))
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    path.write_bytes(damage(before))
    error = raised(EntangledError, lambda: verify(open_run(tmp_path / "run")))
    assert error is None or str(tmp_path / "run") in str(error)
    raised(EntangledError, Writer, tmp_path / "run", genesis(dumps(logs.experiment())))


def _made(tmp_path: Path, state: str) -> Path:
    folder = tmp_path / state
    if not folder.exists():
        logs.finished(folder) if state == "finished" else logs.unfinished(folder, 5)
    return folder
