"""The roles by hand, as on several hosts: over TCP with TLS, each with folders of its own, in any order of starting."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangled import certificates, tokens
from entangled.exchange_log import chain, genesis, read
from entangled.experiment_file import load, loads

SETTINGS = ["epochs=2", "exchange.data=mnist[:200]", "exchange.direction=other_self"]


@pytest.fixture
def address() -> str:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed after the test if they still run."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_coordinator_and_peers_by_hand(tmp_path: Path, address: str, started: list[subprocess.Popen[bytes]]) -> None:
    def entangled(role: str, *arguments: str) -> Path:
        folder = tmp_path / role.replace(" ", "-")
        command = [sys.executable, "-c", "from entangled.cli.main import main; main()", *role.split(), *arguments]
        with (tmp_path / f"{folder.name}.output").open("wb") as output:
            process = subprocess.Popen([*command, "--run-dir", str(folder)], stdout=output, stderr=output)
        started.append(process)
        return folder

    certs, secrets = tmp_path / "certs", tmp_path / "tokens"
    certificates.init(certs, ["cnn", "mlp"], ["127.0.0.1"], 30)
    tokens.init(secrets, ["cnn", "mlp"])

    def show(name: str) -> list[str]:
        return ["--certs", str(certs / name), "--token-file", str(secrets / f"{name}.token")]

    first = entangled("peer mlp", "--coordinator", address, *show("mlp"))  # it waits for a coordinator
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    lock = ["--certs", str(certs / "coordinator"), "--tokens", str(secrets / "coordinator.json")]
    run = entangled("coordinator smoke", *overrides, "--listen", address, *lock)
    second = entangled("peer cnn", "--coordinator", address, *show("cnn"))
    for process in started:
        assert process.wait(180) == 0, "\n".join(p.read_text() for p in tmp_path.glob("*.output"))

    keys = [line for path in certs.glob("*/key.pem") for line in path.read_text().splitlines() if "---" not in line]
    secret = [*keys, *(path.read_text().strip() for path in secrets.glob("*.token"))]
    for path in (p for role in (run, first, second) for p in role.rglob("*") if p.is_file()):
        assert not any(word.encode() in path.read_bytes() for word in secret), path  # logs above all
    assert not any(word in path.read_text() for path in tmp_path.glob("*.output") for word in secret)

    written = (run / "experiment.toml").read_text()
    assert loads(written, "written") == load("smoke", SETTINGS)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["exchanges"] == 4
    for folder, name in ((first, "mlp"), (second, "cnn")):
        peer = folder / "peers" / name
        assert {p.name for p in peer.iterdir()} >= {"initial.weights.h5", "final.keras", "metrics.jsonl", "peer.log"}
        lines = [json.loads(line) for line in (peer / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [0, 1]
        assert [line["weight"] for line in lines] == pytest.approx([0.0, 0.025])
        assert summary["peers"][name]["train_loss"] == pytest.approx(lines[-1]["loss"])
        assert summary["peers"][name]["train_accuracy"] == pytest.approx(lines[-1]["accuracy"])
    link = genesis(written)
    for row, stored in read(run):
        link = chain(link, row)
        assert link == stored
    assert summary["chain"] == link.hex()
