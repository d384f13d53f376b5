"""Guarantees 2, 3 and 6 where processes train several peers each: as if each had one of its own, whatever is killed."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.faults.test_recovery import schedule
from tests.integration.runs import assert_equal_to_the_bit, entangled

EXPERIMENT = """
name = "several"
epochs = 2
batch_size = 32
checkpoint = { steps = 5 }
exchange = { data = "mnist[:480]", weight = { schedule = "constant", value = 0.5 } }
[peers]
a = { model = "mlp" }
b = { model = "tests.integration.models:noisy" }
c = { model = "tests.integration.models:normed" }
d = { model = "mlp", optimizer = { name = "sgd" } }
"""
# Numbers count from the process's start. A run has 30 exchanges; a peer writes a checkpoint every five steps.
KILLS = [
    "b.before-update.8",
    "a.in-checkpoint.2",
    "coordinator.before-reply.50",
    "d.before-leave.1",
]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("several") / "several.toml"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture(scope="module")
def each_its_own(described: str) -> Path:
    run = Path(described).parent / "run"
    done = entangled("run", described, "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    return run


def layers(run: Path, peer: str) -> list[str]:
    """The names of what a peer's model is made of, which Keras counts."""
    with ZipFile(run / "peers" / peer / "final.keras") as file:
        return re.findall(r'"name": "([^"]*)"', file.read("config.json").decode())


@pytest.mark.parametrize("kills", [[], KILLS], ids=["undisturbed", "killed"])
def test_peers_of_two_processes_are_those_of_four(
    tmp_path: Path, described: str, each_its_own: Path, kills: list[str]
) -> None:
    scheduled, run = schedule(tmp_path / "faults", kills), tmp_path / "run"
    done = entangled("run", described, "--set", "processes=2", "--run-dir", str(run), faults=scheduled)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in scheduled.iterdir()) == [], "a fault that was scheduled did not happen"
    assert done.stdout.count("was killed (ended by SIGKILL); started again") == len(kills)
    assert_equal_to_the_bit(each_its_own, run, tuple("abcd"))
    for peer in "abcd":
        assert layers(run, peer) == layers(each_its_own, peer)
        assert f"peer {peer} is done" in (run / "peers" / peer / "peer.log").read_text()
    if not kills:
        assert sorted(path.name for path in run.glob("process-*.log")) == ["process-1.log", "process-2.log"]
