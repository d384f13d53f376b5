"""A Ray cluster of several nodes on this host, each a process group of its own, so that a node can be killed whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from tests.faults.launched import until

ROOT = Path(__file__).parents[2]


class Cluster:
    """A head without CPUs, and whatever nodes are added. A context manager; leaves neither processes nor files."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
        self.stations = self.folder / "t"
        self.stations.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.stations),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            # a node that is killed, whose ports are closed, is missed after seconds; one that is slow, is not
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "4",
        }
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._port = 20_000 + os.getpid() % 10_000
        self._gcs, client, dashboard = (self._free_port() for _ in range(3))
        self.address = f"127.0.0.1:{self._gcs}"
        head = ["--head", f"--port={self._gcs}", f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"]
        self._head = [*head, "--include-dashboard=false", f"--temp-dir={self.folder}/r"]

    def __enter__(self) -> Self:
        self.add(0, *self._head)
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus: int, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a node and wait until it is there. Ray gives one up that takes longer than 30 s, on a busy machine."""
        for _ in range(3):
            node, log = self._start(cpus, arguments or (f"--address={self.address}",))
            if self._there(node, log):
                return node
        raise AssertionError(log.read_text())

    def _there(self, node: subprocess.Popen[bytes], log: Path) -> bool:
        until(lambda: node.poll() is not None or b"Ray runtime started" in log.read_bytes(), "a node of the cluster")
        return node.poll() is None

    def _start(self, cpus: int, arguments: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], Path]:
        manager, objects, agent, metrics, listen = (self._free_port() for _ in range(5))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={cpus}"]
        command += [f"--node-manager-port={manager}", f"--object-manager-port={objects}"]
        command += [f"--dashboard-agent-grpc-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--dashboard-agent-listen-port={listen}", "--object-store-memory=100000000", *arguments]
        log = self.folder / f"node-{len(self._nodes)}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True, cwd=ROOT
            )
        self._nodes.append(node)
        return node, log

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End all processes of a node at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def _free_port(self) -> int:
        """A port that nobody listens on or was given, apart from those that Ray's workers take."""
        while True:
            self._port += 1
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)):
                    return self._port
