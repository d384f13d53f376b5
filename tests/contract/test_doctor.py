"""`entangled doctor` before a coordinator that is there, one that is not, and an experiment that could not run here."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from entangled import devices
from entangled.cli.main import app
from entangled.launch import doctor
from entangled.v1 import exchange_pb2 as pb
from tests.contract.conftest import Coordinate
from tests.support import experiment

RUNNER = CliRunner()


def examine(*arguments: str, code: int) -> dict[str, dict[str, Any]]:
    """The findings by what they are about."""
    done = RUNNER.invoke(app, ["doctor", "--json", *arguments])
    assert done.exit_code == code, done.output
    answer = json.loads(done.stdout)
    assert answer["ok"] is (code == 0)
    assert all(finding["advice"] for finding in answer["findings"] if finding["state"] != "ok"), "says not what to do"
    return {finding["about"]: finding for finding in answer["findings"]}


def test_a_host_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        found = examine("--listen", listen, "--run-dir", str(tmp_path / "runs"), code=0)
    assert {"python", "entangled", "grpc, protobuf", "frameworks", "cpus", "gpus", "disk", "port"} == set(found)
    assert found["port"]["state"] == "note"
    assert "in use" in found["port"]["found"]


def test_a_host_whose_folder_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert examine("--run-dir", str(tmp_path / "runs"), code=1)["disk"]["state"] == "fails"


def test_tensorflow_for_the_cpu_beside_a_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: devices.Gpus((devices.Gpu("card", 8000),)))
    monkeypatch.setattr(doctor, "_version", {"tensorflow-cpu": "2", "grpcio": "1"}.get)
    found = examine(code=0)["gpus"]
    assert (found["state"], found["found"]) == ("note", "gpu:0 card 8000 MiB")
    monkeypatch.setattr(doctor, "_version", {"grpcio": "1"}.get)
    assert "can coordinate, but not train" in examine(code=0)["frameworks"]["advice"]


def test_a_coordinator_that_is_there_tells_its_run_round_trip_and_clock(coordinate: Coordinate) -> None:
    live = coordinate(experiment())
    found = examine("--coordinator", live.address, "--peer", "nobody", code=1)
    assert found["coordinator"]["found"] == f"{live.address} coordinates test for a, b"
    assert found["round trip"]["state"] == found["clock"]["state"] == "ok"
    assert found["peer nobody"]["advice"] == "valid: a, b"


@pytest.mark.parametrize(
    ("ahead", "state", "words"), [(60.0, "note", "behind"), (-60.0, "note", "ahead of"), (1.0, "ok", "behind")]
)
def test_a_clock_that_is_far_off_is_noted(
    monkeypatch: pytest.MonkeyPatch, coordinate: Coordinate, ahead: float, state: str, words: str
) -> None:
    clock = SimpleNamespace(time=lambda: time.time() - ahead, perf_counter=time.perf_counter)
    monkeypatch.setattr(doctor, "time", clock)
    found = examine("--coordinator", coordinate(experiment()).address, "--peer", "nobody", code=1)["clock"]
    assert found["state"] == state
    assert words in found["found"]


def test_one_line_says_why_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert (
            "does it want TLS"
            in examine("--coordinator", f"127.0.0.1:{port}", "--seconds=0.3", code=1)["coordinator"]["advice"]
        )
    for address, words in ((f"127.0.0.1:{port}", "nothing listens on that port"), ("unix:/nowhere", "this very host")):
        assert words in examine("--coordinator", address, "--seconds=0.3", code=1)["coordinator"]["advice"]


def test_another_version_is_told_with_both_numbers(monkeypatch: pytest.MonkeyPatch, coordinate: Coordinate) -> None:
    live = coordinate(experiment())
    monkeypatch.setattr(doctor, "PROTOCOL_VERSION", 99)
    found = examine("--coordinator", live.address, code=1)["coordinator"]["found"]
    assert "protocol 99" in found
    assert pb.GetExperimentReply.DESCRIPTOR.fields_by_name["clock"].number == 4


def test_what_each_peer_would_have_is_tried_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
name = "mine"
epochs = 1
batch_size = 4
[exchange]
data = "mnist[:100]"
[peers.far]
model = "mlp"
device = "gpu:7"
[peers.near]
model = "mlp"
""",
        "utf-8",
    )
    found = examine(str(file), code=1)
    assert "there is no gpu:7 here" in found["peer far: device"]["found"]
    assert found["peer far: data"]["found"] == "100 samples of (28, 28), 10 classes"
    assert "peer far: model" not in found, "a model was built on another device than the experiment's"
    assert found["peer near: device"]["found"].endswith("computes on the CPU")
    assert found["peer near: model"]["found"] == "mlp, 52,650 parameters"
