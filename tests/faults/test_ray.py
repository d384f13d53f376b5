"""Guarantee 6 on a Ray cluster: a node is lost with a peer, then the coordinator with all its files; to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.launched import processes, until
from tests.integration.runs import ENTANGLED, assert_equal_to_the_bit, entangled

pytest.importorskip("ray", reason="NOT RUN: Ray is not installed (pip install 'entangled[ray]')")

SMALL = [
    "smoke",
    "--set=epochs=40",  # long enough to lose a node in the middle
    "--set=exchange.data=mnist[:800]",
    "--set=batch_size=32",
    "--set=checkpoint.steps=10",
]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_a_cluster_loses_changes_nothing(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    with Cluster() as cluster:
        node = cluster.add(1)  # room for one peer
        cluster.add(2)  # for one, and for that of the other node
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*ENTANGLED, "run", *SMALL, "--on", "ray", "--run-dir", str(run)],
                env={**cluster.environment, "RAY_ADDRESS": cluster.address, "COLUMNS": "200"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

        def seen(found: object, what: str = "") -> object:
            assert process.poll() is None, output.read_text()
            return found

        until(lambda: seen(all(list(run.glob(f"peers/{p}/checkpoints/0*")) for p in ("cnn", "mlp"))), "checkpoints")
        cluster.kill(node)
        until(lambda: seen(" goes on on node " in output.read_text()), "the lost peer on another node")

        reached = len(list(run.glob("exchange/*")))
        until(lambda: seen(len(list(run.glob("exchange/*"))) > reached), "another epoch")
        (coordinator,) = (pid for pid, line in processes(str(cluster.stations)).items() if " -m coordinator " in line)
        (files,) = cluster.stations.glob("entangled-*/*/coordinator/run")
        os.kill(parent(coordinator), signal.SIGKILL)
        files.parent.rename(tmp_path / "lost")  # at once, with what was not copied: the next one is there in no time

        assert process.wait(180) == 0, output.read_text()
        said = output.read_text()
        assert said.count("goes on on node") == 2, said
        left = list(cluster.stations.glob("entangled-*/*/*/run/run.json"))
        assert left == [], "a station's files were left behind"
    undisturbed = entangled("run", *SMALL, "--run-dir", str(tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert_equal_to_the_bit(tmp_path / "undisturbed", run)
    assert entangled("log", "verify", str(run)).returncode == 0
    assert "cnn" in (run / "peers/cnn/peer.log").read_text()
