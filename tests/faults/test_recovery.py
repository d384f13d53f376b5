"""Guarantees 2, 3 and 6: whatever is killed, and whenever, the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from entangled.exchange_log import stream_path
from tests.integration.runs import assert_equal_to_the_bit

ENTANGLED = [sys.executable, "-c", "from entangled.cli.main import main; main()"]
SMALL = [
    "smoke",
    "--set=epochs=3",
    "--set=exchange.data=mnist[:800]",
    "--set=batch_size=32",
    "--set=checkpoint.steps=10",
    "--set=peers.mlp.model=tests.integration.models:noisy",
]


def entangled(*arguments: str, faults: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"ENTANGLED_FAULTS": str(faults)} if faults else {})}
    return subprocess.run(
        [*ENTANGLED, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = entangled("run", *SMALL, "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    return run


def schedule(folder: Path, faults: list[str]) -> Path:
    folder.mkdir()
    for fault in faults:
        (folder / fault).touch()
    return folder


@pytest.mark.parametrize(
    "faults",
    [
        [
            "coordinator.before-reply.40",
            "coordinator.before-log-write.3",
            "coordinator.after-log-write.2",
            "coordinator.between-partition-and-stream.1",
            "coordinator.after-goodbye.1",
        ],
        [
            "coordinator.before-reply.61",
            "cnn.before-update.27",
            "cnn.in-checkpoint.2",
            "mlp.in-checkpoint.3",
            "mlp.before-leave.1",
        ],
    ],
    ids=["the coordinator", "everybody"],
)
def test_kills_change_nothing(tmp_path: Path, undisturbed: Path, faults: list[str]) -> None:
    scheduled = schedule(tmp_path / "faults", faults)
    done = entangled("run", *SMALL, "--run-dir", str(tmp_path / "run"), faults=scheduled)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in scheduled.iterdir()) == [], "a fault that was scheduled did not happen"
    assert done.stdout.count("was killed (ended by SIGKILL); started again") == len(faults)
    assert_equal_to_the_bit(undisturbed, tmp_path / "run")
    theirs, ours = (json.loads((run / "summary.json").read_text()) for run in (undisturbed, tmp_path / "run"))
    assert theirs["peers"] == ours["peers"]


def test_a_run_whose_every_process_died_and_whose_files_are_torn_is_resumed(tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([*ENTANGLED, "run", *SMALL, "--run-dir", str(run)], stdout=subprocess.DEVNULL)
    wait_for(lambda: stream_path(run, 1).exists() and stream_path(run, 1).stat().st_size > 20_000)
    process.kill()  # its processes die with it
    process.wait()
    wait_for(lambda: not processes_of(run))
    torn = [stream_path(run, 1), *(max((run / "peers" / p / "checkpoints").iterdir()) for p in ("cnn", "mlp"))]
    for path in torn:
        os.truncate(path, path.stat().st_size - 700)
    with stream_path(run, 1).open("ab") as stream:
        stream.write(bytes(1000))  # what some file systems leave after a power cut

    refused = entangled("run", *SMALL, "--run-dir", str(run))
    assert refused.returncode == 1
    assert f"entangled run --resume {run}" in refused.stderr

    done = entangled("run", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert_equal_to_the_bit(undisturbed, run)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def processes_of(run: Path) -> list[str]:
    """The command lines of all processes that work on a run."""
    lines = [path.read_bytes().replace(b"\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in lines if str(run) in line]
