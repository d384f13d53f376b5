"""The examples of peers with training loops of their own, all in one run: each takes part, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entangled import datasets, experiment_file
from tests.integration.runs import ENTANGLED, entangled

ROOT = Path(__file__).parents[2]
NODE = ROOT / "examples" / "node-peer"
SECONDS = 240.0
KILLED = -9


def node_is_here() -> bool:
    return shutil.which("node") is not None and (NODE / "node_modules").is_dir()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of every example; the PyTorch peer was killed within its second checkpoint."""
    folder = tmp_path_factory.mktemp("examples")
    written = (ROOT / "tests" / "integration" / "examples.toml").read_text()
    if node_is_here():
        written += "[peers.node]\n"
    (folder / "examples.toml").write_text(written)
    address, faults = f"unix:{folder}/socket", folder / "faults"
    faults.mkdir()
    (faults / "pytorch.in-checkpoint.2").touch()
    environment = {**os.environ, "ENTANGLED_FAULTS": str(faults), "OMP_NUM_THREADS": "1"}
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.output").open("ab") as output:
            processes[name] = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)

    def start_example(name: str, *arguments: str) -> None:
        script = str(ROOT / "examples" / f"{name}_peer.py")
        start(name, sys.executable, script, "--coordinator", address, "--name", name, *arguments)

    try:
        start("coordinator", *ENTANGLED, "coordinator", "examples.toml", "--listen", address, "--run-dir", "run")
        start_example("pytorch", "--checkpoints", "checkpoints")
        for name in ("lightning", "flax", "sklearn"):
            start_example(name)
        if node_is_here():
            data = datasets.load("mnist[:600]")
            np.save(folder / "x.npy", data.x)
            np.save(folder / "y.npy", data.y)
            start("node", "node", str(NODE / "peer.mjs"), address, "node", "x.npy", "y.npy")
        with ThreadPoolExecutor(len(processes)) as pool:  # whoever fails is told of at once
            ends = [pool.submit(ended_with, process, name, folder) for name, process in processes.items()]
            try:
                for end in as_completed(ends):
                    if end.result() == KILLED:
                        start_example("pytorch", "--checkpoints", "checkpoints")
            except BaseException:
                for process in processes.values():
                    process.kill()
                raise
        assert processes["pytorch"].wait(SECONDS) == 0, outputs(folder)
        assert not list(faults.iterdir())
        yield folder / "run"
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def ended_with(process: subprocess.Popen[bytes], name: str, folder: Path) -> int:
    code = process.wait(SECONDS)
    assert code == (KILLED if name == "pytorch" else 0), f"{name} ended with {code}\n{outputs(folder)}"
    return code


def outputs(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.output")))


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_every_loop_has_taken_part_and_learned(run: Path) -> None:
    found = summary(run)
    assert found["exchanges"] == 24
    peers = found["peers"]
    assert peers["pytorch"]["test_accuracy"] > 0.5
    assert peers["sklearn"]["test_accuracy"] > 0.3
    assert peers["lightning"]["train_loss"] < 2.0
    assert peers["flax"]["train_loss"] < 2.0
    assert min(values["agreement"] for values in peers.values()) > 0.2
    verified = entangled("log", "verify", str(run))
    assert verified.returncode == 0, verified.stdout


def test_guarantee_6_a_killed_loop_repeats_itself_to_the_bit(run: Path) -> None:
    """The coordinator warns of every prediction that comes again and differs."""
    log = (run / "coordinator.log").read_text()
    assert "with another prediction" not in log


@pytest.mark.skipif(not node_is_here(), reason="needs node, and `npm ci` in examples/node-peer, which make setup does")
def test_a_peer_in_another_language_takes_part(run: Path) -> None:
    values = summary(run)["peers"]["node"]
    assert values["train_loss"] < 2.0
    assert values["agreement"] > 0.2


def test_a_peer_without_a_model_is_told_to_bring_its_loop(tmp_path: Path) -> None:
    experiment = experiment_file.load("smoke", [])
    bare = {name: peer.model_copy(update={"model": ""}) for name, peer in experiment.peers.items()}
    without = experiment.model_copy(update={"peers": bare})
    (tmp_path / "own.toml").write_text(experiment_file.dumps(without))
    done = entangled("run", "own.toml", "--run-dir", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "has no model: it must come with a training loop of its own" in done.stderr
