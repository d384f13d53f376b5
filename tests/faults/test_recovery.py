"""Guarantees 2, 3 and 6: whatever is killed, and whenever, the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import re
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


# Numbers count from the process's start. A run has 75 exchanges; a peer writes a checkpoint every ten steps.
SCHEDULES = {
    "the coordinator": (
        "full",
        [
            "coordinator.after-start.1",
            "coordinator.before-serving.1",
            "coordinator.before-reply.40",
            "coordinator.before-log-write.3",
            "coordinator.in-resuming.1",
            "coordinator.after-log-write.2",
            "coordinator.in-partition.1",
            "coordinator.between-partition-and-stream.1",
            "coordinator.after-goodbye.1",
            "coordinator.before-summary.1",
            "coordinator.after-summary.1",
        ],
    ),
    "everybody": (
        "full",
        [
            "coordinator.before-reply.61",
            "cnn.after-welcome.1",
            "cnn.before-update.27",
            "cnn.in-checkpoint.2",
            "mlp.between-rename-and-unlink.3",
            "mlp.before-leave.1",
            "mlp.after-leave.1",
        ],
    ),
    "without predictions": (
        "statistics",
        [
            "coordinator.in-thinning.1",
            "cnn.before-update.47",
            "mlp.in-checkpoint.5",
            "coordinator.after-goodbye.1",
        ],
    ),
}


def test_every_point_in_the_code_is_scheduled() -> None:
    root, points = Path(__file__).parents[2], set[str]()
    for path in (p for room in ("coordinator", "entangled", "peer") for p in (root / room).rglob("*.py")):
        for role, name in re.findall(r'faults\.point\(("coordinator"|[\w.]+), "([a-z ]+)"\)', path.read_text("utf-8")):
            points.add(f"{'coordinator' if role.startswith(chr(34)) else 'peer'}.{name.replace(' ', '-')}")
    roles = {"cnn": "peer", "mlp": "peer", "coordinator": "coordinator"}
    scheduled = [fault.split(".") for _, faults in SCHEDULES.values() for fault in faults]
    assert points == {f"{roles[role]}.{name}" for role, name, _ in scheduled}
    assert len(points) == 18


@pytest.mark.parametrize(("log", "faults"), SCHEDULES.values(), ids=SCHEDULES)
def test_kills_change_nothing(tmp_path: Path, undisturbed: Path, log: str, faults: list[str]) -> None:
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
