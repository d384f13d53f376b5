"""Guarantee 7: a run that stops says how to go on, by the very command."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from entangled import process
from entangled.errors import EntangledError, PatienceError, RunFailedError
from entangled.experiment_file import load
from entangled.launch import local

WAITED = "waited 600 s at epoch 1 step 3 for mlp (not connected)"


class Ended:
    """A role that has ended with an error."""

    exit_code = 1
    restarts = 0
    peers = 1

    def __init__(self, name: str, arguments: list[str], log: Path, peers: int = 1) -> None:
        self.name, self.log = name, log

    def why(self) -> str:
        return WAITED


class NoWatch:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def reached(self, role: str) -> int:
        return 0


@pytest.mark.parametrize("exchanged", [True, False])
def test_guarantee_7_a_run_that_stops_names_the_command_that_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    for name, stub in {"Role": Ended, "Watch": NoWatch, "stop": lambda _: None}.items():
        monkeypatch.setattr(local, name, stub)
    if exchanged:
        (tmp_path / "exchange").mkdir()
        (tmp_path / "exchange" / "epoch=0000.arrow").touch()
    with pytest.raises(RunFailedError) as failed:
        local.run(load("smoke"), tmp_path, lambda _: None, resume=True)
    message = str(failed.value)
    assert message.startswith(f"peer cnn: {WAITED} (its log: ")
    assert message.endswith(f"to go on: entangled run --resume {tmp_path}") == exchanged


@pytest.mark.parametrize(
    ("error", "hint"), [(PatienceError(WAITED), True), (RunFailedError("x"), True), (EntangledError("x"), False)]
)
def test_a_role_by_hand_names_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: EntangledError, hint: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "cnn", "--run-dir", "runs/of mine"])

    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        process.main(work, "entangled peer")
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: {error}"
    assert said[1:] == (["nothing is lost; to go on: entangled peer cnn --run-dir 'runs/of mine'"] if hint else [])


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            errno.ENOSPC,
            "no space left on the disk of the run's folder: free some, then go on with entangled run --resume",
        ),
        (errno.EDQUOT, "no space left"),
        (
            errno.EROFS,
            "cannot write runs/x: it is read-only or somebody else's; mend its permissions, or choose another",
        ),
        (errno.EACCES, "cannot write runs/x"),
        (errno.EIO, "OSError: [Errno 5] Input/output error: 'runs/x'"),
    ],
)
def test_what_the_disk_says_comes_with_what_to_do(number: int, said: str) -> None:
    assert process.one_line(OSError(number, os.strerror(number), "runs/x")).startswith(said)
