"""Guarantees 2, 3 and 6: whatever is killed, and whenever, the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from entangled.exchange_log import read, stream_path
from tests.faults.launched import processes, until
from tests.integration.runs import ENTANGLED, assert_equal_to_the_bit, entangled

SMALL = [
    "smoke",
    "--set=epochs=3",
    "--set=exchange.data=mnist[:800]",
    "--set=batch_size=32",
    "--set=checkpoint.steps=10",
    "--set=peers.mlp.model=tests.integration.models:noisy",
]


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
    ("faults", "log"),
    [
        (
            [
                "coordinator.before-reply.40",
                "coordinator.before-log-write.3",
                "coordinator.after-log-write.2",
                "coordinator.between-partition-and-stream.1",
                "coordinator.after-goodbye.1",
            ],
            "full",
        ),
        (
            [
                "coordinator.before-reply.61",
                "cnn.before-update.27",
                "cnn.in-checkpoint.2",
                "mlp.in-checkpoint.3",
                "mlp.before-leave.1",
            ],
            "full",
        ),
        (
            [
                "coordinator.in-thinning.1",
                "cnn.before-update.47",
                "mlp.in-checkpoint.5",
                "coordinator.after-goodbye.1",
            ],
            "statistics",
        ),
    ],
    ids=["the coordinator", "everybody", "without predictions"],
)
def test_kills_change_nothing(tmp_path: Path, undisturbed: Path, faults: list[str], log: str) -> None:
    scheduled = schedule(tmp_path / "faults", faults)
    settings = [*SMALL, f"--set=exchange.log={log}"]
    done = entangled("run", *settings, "--run-dir", str(tmp_path / "run"), faults=scheduled)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in scheduled.iterdir()) == [], "a fault that was scheduled did not happen"
    assert done.stdout.count("was killed (ended by SIGKILL); started again") == len(faults)
    assert_equal_to_the_bit(undisturbed, tmp_path / "run")
    theirs, ours = (json.loads((run / "summary.json").read_text()) for run in (undisturbed, tmp_path / "run"))
    assert theirs["peers"] == ours["peers"]
    assert {row.prediction is not None for row, _ in read(tmp_path / "run")} == {log == "full"}


def test_a_run_whose_every_process_died_and_whose_files_are_torn_is_resumed(tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([*ENTANGLED, "run", *SMALL, "--run-dir", str(run)], stdout=subprocess.DEVNULL)
    stream = stream_path(run, 1)
    until(lambda: stream.exists() and stream.stat().st_size > 20_000, "the second epoch")
    process.kill()  # its processes die with it
    process.wait()
    until(lambda: not processes(str(run)), "the end of its processes")
    torn = [stream, *(max((run / "peers" / p / "checkpoints").iterdir()) for p in ("cnn", "mlp"))]
    for path in torn:
        os.truncate(path, path.stat().st_size - 700)
    with stream.open("ab") as file:
        file.write(bytes(1000))  # what some file systems leave after a power cut

    refused = entangled("run", *SMALL, "--run-dir", str(run))
    assert refused.returncode == 1
    assert f"entangled run --resume {run}" in refused.stderr

    done = entangled("run", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert_equal_to_the_bit(undisturbed, run)
