"""Could this host take part? What `entangled doctor` finds out, as findings; imports no machine-learning framework."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from entangled import PROTOCOL_VERSION, devices, experiment_file
from entangled.credentials import NOTHING, Credentials
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub

FRAMEWORKS = ("tensorflow", "tensorflow-cpu", "keras", "torch", "jax", "ray")
ROUND_TRIPS = 10
CLOCK_SECONDS = 5.0
"""A clock that is off by more is noted: certificates and tokens are valid from one time to another."""
REHEARSAL_SECONDS = 300.0
LOW_DISK = 2 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: Literal["ok", "note", "fails"]
    """`note` may matter; `fails` will end a run."""
    found: str
    advice: str = ""
    """What to do, where something is to be done."""


def this_host(folder: Path, listen: str) -> Iterator[Finding]:
    """What this host is: versions, devices, disk, port.

    Args:
        folder: where runs would be written.
        listen: `host:port` at which a coordinator would listen here.
    """
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("entangled", "ok", f"{_version('entangled')}, protocol {PROTOCOL_VERSION}")
    yield Finding("grpc, protobuf", "ok", f"{_version('grpcio')}, {_version('protobuf')}")
    yield _frameworks()
    yield from _devices()
    yield _disk(folder)
    yield _port(listen)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _frameworks() -> Finding:
    found = {name: version for name in FRAMEWORKS if (version := _version(name))}
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found.keys() & {"tensorflow", "tensorflow-cpu", "torch", "jax"}:
        what = "this host can coordinate, but not train: pip install 'entangled[tensorflow]', or 'entangled[gpu]'"
        return Finding("frameworks", "note", shown or "none", what)
    return Finding("frameworks", "ok", shown)


def _devices() -> Iterator[Finding]:
    yield Finding("cpus", "ok", f"{devices.cpus()} of {os.cpu_count()}")
    gpus = devices.gpus()
    if not gpus.devices:
        yield Finding("gpus", "ok", f"none: {gpus.why_none}")
        return
    shown = ", ".join(f"gpu:{i} {gpu.name} {gpu.memory_mib} MiB" for i, gpu in enumerate(gpus.devices))
    if _version("tensorflow") is None and _version("tensorflow-cpu") is not None:
        yield Finding(
            "gpus", "note", shown, "the TensorFlow here is the CPU's: pip install 'entangled[gpu]' to train on them"
        )
    else:
        yield Finding("gpus", "ok", shown)


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("disk", "fails", f"{there} cannot be written to", "give --run-dir a folder of yours")
    shown = f"{free / 1e9:.1f} GB free in {there}"
    if free < LOW_DISK:
        return Finding("disk", "note", shown, "free some: a log of every prediction may need more")
    return Finding("disk", "ok", shown)


def _port(listen: str) -> Finding:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (OSError, ValueError) as error:
        what = "a coordinator here needs another --listen; a peer needs no open port"
        return Finding("port", "note", f"{listen} cannot be listened on: {error}", what)
    return Finding("port", "ok", f"{listen} is free for a coordinator; a peer needs no open port")


def coordinator(
    address: str, channel: grpc.Channel, seconds: float, mine: Credentials = NOTHING
) -> tuple[list[Finding], Experiment | None]:
    """What another host's coordinator is to this one: version, run, round trip, clock.

    Args:
        address: for messages.
        channel: to it.
        seconds: how long an answer may take.
        mine: what is shown at the coordinator's door.

    Returns:
        The findings, and the experiment where the coordinator told it.
    """
    stub: Any = CoordinatorStub(channel)
    request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION)
    try:
        reply: pb.GetExperimentReply = stub.GetExperiment(
            request, timeout=seconds, wait_for_ready=True, metadata=mine.metadata
        )
        experiment = experiment_file.loads(reply.experiment_toml, f"the experiment of {address}")
        round_trips, offset = _measure(channel, stub, request, seconds, mine)
    except grpc.RpcError as error:
        call: Any = error
        if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return [_silent(address, seconds, mine)], None
        raised = from_status(call.code(), call.details() or "", call.trailing_metadata() or ())
        return [Finding("coordinator", "fails", str(raised), "mend that, or install the same release there")], None
    except EntangledError as error:
        return [Finding("coordinator", "fails", str(error), "install the same release on both hosts")], None
    findings = [
        Finding("coordinator", "ok", f"{address} coordinates {experiment.name} for {', '.join(experiment.peer_names)}"),
        Finding(
            "round trip",
            "ok",
            f"{statistics.median(round_trips) * 1e3:.2f} ms, at best {min(round_trips) * 1e3:.2f} ms",
        ),
    ]
    if offset is None:
        findings.append(
            Finding("clock", "note", "the coordinator does not tell its clock", "it is of an older release")
        )
    else:
        half = min(round_trips) / 2
        side = "behind" if offset > 0 else "ahead of"
        shown = f"{abs(offset) * 1e3:.1f} ms {side} the coordinator's, give or take {half * 1e3:.1f} ms"
        far = abs(offset) > CLOCK_SECONDS + half
        what = "set it (NTP): certificates and tokens hold from one time to another" if far else ""
        findings.append(Finding("clock", "note" if far else "ok", shown, what))
    return findings, experiment


def _measure(
    channel: grpc.Channel, stub: Any, request: pb.GetExperimentRequest, seconds: float, mine: Credentials
) -> tuple[list[float], float | None]:
    """Round trips in seconds, and by how much the coordinator's clock is ahead, as the fastest one tells it."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    round_trips: list[float] = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        round_trips.append(time.perf_counter() - began)
    offsets: list[tuple[float, float]] = []
    for _ in range(ROUND_TRIPS):
        sent = time.time()
        clock = stub.GetExperiment(request, timeout=seconds, metadata=mine.metadata).clock / 1e6
        got = time.time()
        if clock:
            offsets.append((got - sent, clock - (sent + got) / 2))
    return round_trips, min(offsets)[1] if offsets else None


def _silent(address: str, seconds: float, mine: Credentials) -> Finding:
    """Nobody answers: say what TCP says, since that is what has to be mended."""
    found = f"nobody answers at {address} within {seconds:g} s"
    if address.startswith("unix:"):
        return Finding("coordinator", "fails", found, "is it running, on this very host?")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            unknown = ", but does not answer: does it want TLS (--certs), or is it no coordinator?"
            what = "something listens there" + (mine.why_not(address) or unknown)
    except ConnectionRefusedError:
        what = "the host is there, but nothing listens on that port: start the coordinator, on --listen 0.0.0.0:PORT"
    except TimeoutError:
        what = "packets get no answer: a firewall, or no such host; let TCP to that port through"
    except socket.gaierror:
        what = f"the name {host} is not known here"
    except (OSError, ValueError) as error:
        what = str(error)
    return Finding("coordinator", "fails", found, what)


def peers(experiment: Experiment, names: tuple[str, ...], device: str | None = None) -> Iterator[Finding]:
    """Have each named peer do all that it does before it joins, in a process of its own, and tell what it has then."""
    toml = experiment_file.dumps(experiment)
    for name in names:
        arguments = [sys.executable, "-m", "peer.rehearsal", name, *([f"--device={device}"] if device else [])]
        try:
            done = subprocess.run(
                arguments, input=toml, capture_output=True, text=True, timeout=REHEARSAL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            what = f"is not ready after {REHEARSAL_SECONDS:g} s"
            yield Finding(f"peer {name}", "fails", what, "look at its data and model: one of them takes so long")
            continue
        try:
            found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            yield Finding(f"peer {name}", "fails", last, "start it by hand to see more: entangled peer")
            continue
        for part, result in found.items():
            advice = "" if result["ok"] else _ADVICE[part]
            yield Finding(f"peer {name}: {part}", "ok" if result["ok"] else "fails", result["what"], advice)


_ADVICE = {
    "device": "change peers.NAME.device or memory, or give --device here",
    "data": "exchange.data must be loadable on every peer's host, from the folder where the peer starts",
    "model": "peers.NAME.model must be importable from the folder where the peer starts",
}
