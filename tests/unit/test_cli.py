"""The command line without a run: what it prints, and how it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entangled import __version__
from entangled.cli import main as cli
from entangled.experiment_file import loads, shipped

RUNNER = CliRunner()


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that must fail without a stack trace."""
    monkeypatch.setattr(sys, "argv", ["entangled", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_version() -> None:
    done = RUNNER.invoke(cli.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"entangled {__version__}\n")


def test_without_arguments_it_helps() -> None:
    done = RUNNER.invoke(cli.app, [])
    assert "Usage" in done.output
    for command in ("run", "coordinator", "peer", "experiments"):
        assert command in done.output


def test_experiments_are_listed_one_line_each() -> None:
    lines = RUNNER.invoke(cli.app, ["experiments"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(shipped())
    assert all(loads(text, name).description in "\n".join(lines) for name, text in shipped().items())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_experiment_is_shown_as_it_is(name: str) -> None:
    done = RUNNER.invoke(cli.app, ["experiments", "--show", name])
    assert done.exit_code == 0
    assert done.stdout.strip() == shipped()[name].strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiments", "--show", "minst"], "no such experiment (expected halves, mixed, mnist, notebook"),
        (["run", "minst"], "no experiment `minst`: give a .toml file, or one of: "),
        (["run", "nowhere.toml"], "cannot read nowhere.toml: No such file or directory"),
        (["run", "smoke", "--set", "epochs"], "cannot understand --set (expected KEY=VALUE"),
        (["run", "smoke", "--set", "epoch=1"], "smoke: `epoch` is not known here; did you mean `epochs`?"),
        (["run", "smoke", "--set", "epochs=none"], "smoke: `epochs`: Input should be a valid integer"),
        (["run", "smoke", "--run-dir", "full"], "full is not empty; choose another --run-dir"),
        (["run", "smoke", "--run-dir", "full/file"], "Not a directory: 'full/file'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    line = refused(arguments, monkeypatch, capsys)
    assert words in line
    assert len(line.splitlines()) == 1
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["full", "full/file"]


@pytest.mark.parametrize("arguments", [["walk"], ["run", "smoke", "--sett", "epochs=1"], ["peer"]])
def test_what_it_does_not_know_ends_with_code_2(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from entangled.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("role", "options"),
    [
        ("coordinator", ["--run-dir", "--listen", "--set", "--certs", "--tokens", "--insecure"]),
        ("peer", ["NAME", "--coordinator", "--run-dir", "--connect-seconds", "--certs", "--token-file"]),
    ],
)
def test_the_roles_help_under_the_name_they_were_called_by(role: str, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from entangled.cli.main import main; main()", role, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: entangled {role}" in done.stdout
    assert all(option in done.stdout for option in options)
    assert done.stderr == ""


def test_a_peer_without_a_coordinator_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "peer", "cnn", "--coordinator", f"unix:{tmp_path}/no.sock", "--connect-seconds", "0.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    where = f"no coordinator answers at unix:{tmp_path}/no.sock within 0.5 s"
    assert done.stderr.splitlines()[-1] == f"error: {where}: is it running, and is this its address?"
    assert "Traceback" not in done.stderr


def test_the_coordinator_refuses_what_it_cannot_listen_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "smoke", "--listen", "nowhere.invalid:1", "--insecure"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot listen on nowhere.invalid:1")
    assert "Traceback" not in done.stderr


def test_certificates_are_made_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = RUNNER.invoke(cli.app, ["certs", "init", "smoke", "--host", "gpu1.example.com"])
    assert made.exit_code == 0, made.output
    lines = {line.split("  ")[0]: line for line in made.stdout.splitlines()}
    assert list(lines) == ["certs/ca", "certs/coordinator", "certs/cnn", "certs/mlp", "certs/operator"]
    assert "entangled coordinator --certs certs/coordinator" in lines["certs/coordinator"]
    assert "gpu1.example.com" in lines["certs/coordinator"]
    assert lines["certs/cnn"].endswith("entangled peer cnn --certs certs/cnn")
    again = RUNNER.invoke(cli.app, ["certs", "init", "smoke"])
    assert all(line.endswith("(kept)") for line in again.stdout.splitlines())
    shown = RUNNER.invoke(cli.app, ["certs", "show", "certs/coordinator"]).stdout
    assert re.fullmatch(r"name   coordinator\nhosts  localhost, .*gpu1.example.com.*\nuntil  \d{4}-.* UTC\n", shown)


def test_tokens_are_made_and_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = RUNNER.invoke(cli.app, ["tokens", "init", "smoke"])
    assert made.exit_code == 0, made.output
    assert "tokens/cnn.token  entangled peer cnn --token-file tokens/cnn.token" in made.stdout
    assert "entangled coordinator --tokens tokens/coordinator.json" in made.stdout
    assert not any(path.read_text().strip() in made.stdout for path in Path("tokens").glob("*.token"))
    assert RUNNER.invoke(cli.app, ["tokens", "init", "smoke"]).stdout.count("(kept)") == 4


def test_no_role_takes_a_token_as_an_argument() -> None:
    """Every user of a host can read a process's arguments."""
    for role in ("coordinator", "peer"):
        done = subprocess.run(
            [sys.executable, "-m", role, "--token", "x" * 43], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2
        assert "No such option" in done.stderr


def test_help_imports_nothing_that_takes_its_time() -> None:
    program = """
import sys
from entangled.cli.main import app
heavy = {"numpy", "pydantic", "grpc", "google.protobuf", "pyarrow", "tensorflow", "keras", "torch"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
