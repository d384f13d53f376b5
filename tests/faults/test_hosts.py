"""Guarantees 2, 3 and 6 on three hosts over mutual TLS: a link that is slow and loses packets, and one that is cut."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from entangled import certificates
from entangled.exchange_log import read, stream_path
from tests.faults.hosts import Hosts, why_not
from tests.faults.launched import until
from tests.integration.runs import ENTANGLED, assert_equal_to_the_bit, entangled

SMALL = ["--set=epochs=4", "--set=exchange.data=mnist[:600]", "--set=batch_size=32", "--set=checkpoint.steps=10"]
CUT_SECONDS = 3.0


@pytest.fixture(scope="module")
def possible() -> None:
    if reason := why_not():
        pytest.skip(f"NOT RUN: three hosts: {reason}")


@pytest.mark.usefixtures("possible")
def test_three_hosts_over_a_bad_network_come_to_what_one_host_does(tmp_path: Path) -> None:
    certs, folders = tmp_path / "certs", {role: tmp_path / role for role in ("coordinator", "cnn", "mlp")}
    certificates.init(certs, ["cnn", "mlp"], ["10.81.1.1", "10.81.2.1"], 1)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with Hosts("coordinator", "cnn", "mlp") as hosts:

        def start(role: str, *arguments: str) -> None:
            command = [*hosts.on(role), *ENTANGLED, *arguments]
            command += ["--certs", str(certs / role), "--run-dir", str(folders[role])]
            with (tmp_path / f"{role}.output").open("wb") as output:
                processes[role] = subprocess.Popen(command, stdout=output, stderr=output)

        def said() -> str:
            return "\n".join(path.read_text() for path in tmp_path.glob("*.output"))

        hosts.link("cnn", "10.81.1.1", "10.81.1.2")
        slow = hosts.slow_link("mlp", "10.81.2.1", "10.81.2.2", delay=0.003, lose=25)
        try:
            start("coordinator", "coordinator", "smoke", *SMALL, "--listen", "0.0.0.0:50051")
            start("cnn", "peer", "cnn", "--coordinator", "10.81.1.1:50051")
            start("mlp", "peer", "mlp", "--coordinator", "10.81.2.1:50051")

            def on_its_way() -> bool:
                assert all(process.poll() is None for process in processes.values()), said()
                return stream_path(folders["coordinator"], 1).exists()

            until(on_its_way, "the second epoch")
            hosts.cut("cnn")
            time.sleep(CUT_SECONDS)  # not to wait for anything: so long is the link away
            written = [stream.stat().st_size for stream in folders["coordinator"].glob("exchange/*.arrow")]
            assert all(process.poll() is None for process in processes.values()), said()
            hosts.restore("cnn")
            for process in processes.values():
                assert process.wait(180) == 0, said()
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    assert slow.lost >= 8
    assert written, "the link was cut when all was over"
    for peer in ("cnn", "mlp"):
        (folders["coordinator"] / "peers").mkdir(exist_ok=True)
        (folders[peer] / "peers" / peer).rename(folders["coordinator"] / "peers" / peer)
    alone = tmp_path / "alone"
    done = entangled("run", "smoke", *SMALL, "--run-dir", str(alone))
    assert done.returncode == 0, done.stderr
    assert_equal_to_the_bit(alone, folders["coordinator"])
    assert len(list(read(folders["coordinator"]))) == 2 * 4 * 19
    theirs, ours = (json.loads((run / "summary.json").read_text())["peers"] for run in (alone, folders["coordinator"]))
    assert theirs == ours
