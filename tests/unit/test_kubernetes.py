"""The manifests in k8s/: valid for Kubernetes' own schemas, whole, and of one mind about names, numbers and ports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from entangled.experiment_file import load
from tests.faults.launched import until

K8S = Path(__file__).parents[2] / "k8s"
FOLDERS = ["base", "gpu", "plain"]
VERSIONS = ["1.33", "1.37"]
"""The oldest that has all that is used, and the newest whose schemas there are."""


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def kustomization(folder: str) -> dict[str, Any]:
    return yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())


def manifest(file: str, kind: str) -> dict[str, Any]:
    (found,) = (d for d in documents((K8S / "base" / file).read_text()) if d["kind"] == kind)
    return found


def container(file: str, kind: str) -> dict[str, Any]:
    (found,) = manifest(file, kind)["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    found = [d for file in kustomization("base")["resources"] for d in documents((K8S / "base" / file).read_text())]
    assert {"Service", "StatefulSet", "Job", "PersistentVolumeClaim", "NetworkPolicy"} == {d["kind"] for d in found}
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_manifest_that_is_not_valid_would_be_noticed() -> None:
    wrong = manifest("peers.yaml", "Job")
    wrong["spec"]["completion"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT RUN: there is no kubectl to build with")
def test_what_kustomize_builds_is_valid(folder: str) -> None:
    built = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=True)
    found = documents(built.stdout)
    for document in found:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (job,) = (d for d in found if d["kind"] == "Job")
    (peer,) = job["spec"]["template"]["spec"]["containers"]
    assert ("nvidia.com/gpu" in peer["resources"]["limits"]) is (folder == "gpu")
    assert peer["image"] == f"entangled-peer:{'gpu' if folder == 'gpu' else 'latest'}"
    assert ("secret" in built.stdout) is (folder != "plain")
    assert ("--insecure" in built.stdout) is (folder == "plain")
    assert ("grpc:" in built.stdout) is (folder == "plain"), "Kubernetes' gRPC probe speaks no TLS"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_names_the_files_that_are_there(folder: str) -> None:
    found = kustomization(folder)
    named = [*found["resources"], *(patch["path"] for patch in found.get("patches", []))]
    named += [file for generator in found.get("configMapGenerator", []) for file in generator["files"]]
    here = {path.name for path in (K8S / folder).iterdir()}
    assert {name for name in named if name != "../base"} | {"kustomization.yaml"} == here


def test_there_are_as_many_peers_as_the_experiment_has_each_with_its_own_certificate() -> None:
    names = load(str(K8S / "base" / "experiment.toml")).peer_names
    job = manifest("peers.yaml", "Job")["spec"]
    assert job["completions"] == job["parallelism"] == len(names)
    assert tuple(container("peers.yaml", "Job")["args"][2:]) == names
    (secret,) = (v["secret"] for v in job["template"]["spec"]["volumes"] if v["name"] == "certs")
    expected = [(f"{i}.{part}.pem", f"{i}/{part}.pem") for i in range(len(names)) for part in ("ca", "cert", "key")]
    assert [(item["key"], item["path"]) for item in secret["items"]] == expected


@pytest.mark.parametrize(("index", "name"), [(0, "cnn"), (1, "mlp")])
def test_a_pod_knows_its_peer_by_its_number(index: int, name: str) -> None:
    peer = container("peers.yaml", "Job")
    script, *arguments = peer["args"]
    echo = script.replace("exec entangled", "exec echo")
    done = subprocess.run(
        [*peer["command"], echo, *arguments], env={**os.environ, "INDEX": str(index)}, capture_output=True, check=True
    )
    assert done.stdout.decode().split()[:2] == ["peer", name]


def test_services_selectors_and_ports_meet() -> None:
    service, sets = manifest("coordinator.yaml", "Service"), manifest("coordinator.yaml", "StatefulSet")["spec"]
    labels = sets["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == sets["selector"]["matchLabels"] == labels
    assert sets["serviceName"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    (listens,) = container("coordinator.yaml", "StatefulSet")["ports"]
    assert port["targetPort"] == listens["name"]
    environment = {e["name"]: e.get("value") for e in container("peers.yaml", "Job")["env"]}
    assert environment["ENTANGLED_COORDINATOR"] == f"{service['metadata']['name']}:{port['port']}"
    assert f"--listen 0.0.0.0:{listens['containerPort']}" in container("coordinator.yaml", "StatefulSet")["args"][0]
    policies = {d["metadata"]["name"]: d["spec"] for d in documents((K8S / "base" / "network.yaml").read_text())}
    assert policies["coordinator"]["podSelector"]["matchLabels"] == labels
    (rule,) = policies["coordinator"]["ingress"]
    peers = manifest("peers.yaml", "Job")["spec"]["template"]["metadata"]["labels"]
    assert rule["from"] == [{"podSelector": {"matchLabels": peers}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["port"]}]


@pytest.fixture
def coordinator(tmp_path: Path):
    """Starts the pod's script with an `entangled` that does what it is told."""
    started: list[subprocess.Popen[bytes]] = []

    def start(entangled: str) -> subprocess.Popen[bytes]:
        (tmp_path / "entangled").write_text(f"#!/bin/sh\n{entangled}\n")
        (tmp_path / "entangled").chmod(0o755)
        script = container("coordinator.yaml", "StatefulSet")
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": str(tmp_path)}
        command = [*script["command"], *script["args"]]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_coordinator_that_is_done_stays_until_its_pod_is_stopped(coordinator, tmp_path: Path) -> None:
    pod = coordinator('echo {} >"$RUN/summary.json"')
    until((tmp_path / "summary.json").exists, "the end of the run")
    until(lambda: "sleep" in children(pod.pid), "the pod to stay")
    pod.terminate()
    assert pod.wait(30) == 0
    again = coordinator("exit 9")  # there is nothing left to coordinate
    until(lambda: "sleep" in children(again.pid), "the pod to stay")


def test_a_coordinator_that_fails_or_is_stopped_ends_its_pod(coordinator, tmp_path: Path) -> None:
    assert coordinator("exit 3").wait(30) == 3
    pod = coordinator(
        f"trap 'touch {tmp_path}/farewell; exit 130' TERM; touch {tmp_path}/here; while :; do sleep 0.05; done"
    )
    until((tmp_path / "here").exists, "the coordinator")
    pod.terminate()
    pod.wait(30)
    assert (tmp_path / "farewell").exists(), "it could not say goodbye to its peers"


def children(pid: int) -> str:
    """The command lines of a process's children."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return " ".join(Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in found)
