"""The coordinator's process: run folder, server, end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.recorder import Recorder
from coordinator.service import CoordinatorService
from coordinator.session import Session
from entangled import codec
from entangled.alignment import Fingerprint
from entangled.errors import EntangledError, LogError, RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import add_CoordinatorServicer_to_server

log = logging.getLogger(__name__)

OPTIONS = [
    ("grpc.max_receive_message_length", codec.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", codec.MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # A peer's host that vanished is noticed within half a minute; peers may ping as often as they like.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


async def serve(experiment: Experiment, listen: str, run: Path) -> None:
    """Coordinate one run, from the first peer to the last goodbye.

    Args:
        experiment: what is to be run.
        listen: `host:port` or `unix:PATH`.
        run: the run's folder; gets `experiment.toml`, `run.json`, `exchange/`, `summary.json`.

    Raises:
        EntangledError: the run failed; the message says because of whom.
    """
    loop = asyncio.get_running_loop()
    toml, run_id = dumps(experiment), uuid.uuid4().hex
    run.mkdir(parents=True, exist_ok=True)

    def disk_failed(error: Exception) -> None:
        reason = LogError(f"cannot write the exchange log in {run}: {error}")
        loop.call_soon_threadsafe(service.fail, reason)

    def durable(complete: int) -> None:
        loop.call_soon_threadsafe(service.durable, complete)

    recorder = Recorder(run, toml, durable, disk_failed)
    (run / "experiment.toml").write_text(toml, "utf-8")
    began: list[float] = []

    def started(data: Fingerprint) -> None:
        began.append(time.monotonic())
        description = {
            "run_id": run_id,
            "samples": data.samples,
            "classes": data.classes,
            "ids_digest": data.ids_digest.hex(),
            "contents_digest": data.contents_digest.hex(),
        }
        _write_json(run / "run.json", description)

    service = CoordinatorService(Session(experiment, time.monotonic()), toml, run_id, recorder.add, started)
    server = await _start(service, listen)
    log.info("coordinating %s for %s on %s", experiment.name, ", ".join(experiment.peer_names), listen)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: service.fail(RunFailedError("the coordinator was stopped")))
    ticking = asyncio.create_task(service.tick())
    try:
        error = await service.over
        seconds = time.monotonic() - began[0] if began else 0.0
        await asyncio.to_thread(recorder.close)
        if error is not None:
            raise error
        _write_json(run / "summary.json", _summary(service.session, recorder, seconds))
        log.info("done: %s", run / "summary.json")
    finally:
        ticking.cancel()
        await server.stop(grace=1)


async def _start(service: CoordinatorService, listen: str) -> grpc.aio.Server:
    server = grpc.aio.server(options=OPTIONS)
    add_CoordinatorServicer_to_server(service, server)
    checks: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    name = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
    names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        server.add_insecure_port(listen)
    except RuntimeError:
        raise EntangledError(f"cannot listen on {listen}: port in use, or not this host's address?") from None
    await server.start()
    for part in ("", name):
        await checks.set(part, health_pb2.HealthCheckResponse.SERVING)
    return server


def _summary(session: Session, recorder: Recorder, seconds: float) -> dict[str, object]:
    agreement = dict(zip(session.members, recorder.agreement(), strict=True))
    return {
        "experiment": session.experiment.name,
        "peers": {m.name: {**(m.final or {}), "agreement": agreement[m.name]} for m in session.members.values()},
        "exchanges": session.complete,
        "wall_seconds": seconds,
        "final_weight": session.weight,
        "chain": recorder.chain.hex(),
    }


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temporary.rename(path)
