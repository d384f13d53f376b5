"""The coordinator's process: run folder, server, end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from coordinator.archive import Archive
from coordinator.doors import Doorkeeper, Lock
from coordinator.lobby import limits
from coordinator.recorder import Recorder
from coordinator.run_folder import RunFolder
from coordinator.service import CoordinatorService
from coordinator.serving import Loop, Server
from coordinator.session import Session
from entangled import atomic, codec, faults, process
from entangled.alignment import Position
from entangled.distribution import STATISTICS
from entangled.errors import EntangledError, LogError, RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import add_CoordinatorServicer_to_server

log = logging.getLogger(__name__)

OPTIONS = [
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

_AGREEMENT = STATISTICS.index("agreement")
FAREWELL_SECONDS = 2.0
"""How long a run that failed says so to peers that come back."""


def serve(experiment: Experiment, listen: str, run: Path, lock: Lock | None = None) -> None:
    """Coordinate one run, from the first peer to the last goodbye; one that was interrupted goes on.

    Args:
        experiment: what is to be run.
        listen: `host:port` or `unix:PATH`.
        run: the run's folder; gets `experiment.toml`, `run.json`, `exchange/`, `summary.json`.
        lock: what callers need to get in; nothing by default, which is for `unix:PATH` and this host's own addresses.

    Raises:
        EntangledError: the run failed; the message says because of whom.
    """
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(_serve(experiment, listen, run, lock or Lock()))


async def _serve(experiment: Experiment, listen: str, run: Path, lock: Lock) -> None:
    loop = asyncio.get_running_loop()
    toml = dumps(experiment)
    folder = RunFolder(run, toml)

    def disk_failed(error: Exception) -> None:
        reason = LogError(f"cannot write the exchange log in {run}: {process.one_line(error)}")
        loop.call_soon_threadsafe(service.fail, reason)

    def durable(complete: int) -> None:
        loop.call_soon_threadsafe(service.durable, complete)

    recorder = Recorder(run, experiment, durable, disk_failed)
    session = Session(experiment, time.monotonic(), folder.restored(recorder.resumed, recorder.members))
    service = CoordinatorService(session, toml, folder, recorder.add, recorder.thin)
    faults.point("coordinator", "before serving")
    server = await _start(service, listen, lock)
    log.info("coordinating %s for %s on %s", experiment.name, ", ".join(experiment.peer_names), listen)
    if session.complete:
        log.info("going on after %d of %d exchanges", session.complete, service.activity().total)
    stopped: list[int] = []

    def stop(number: int) -> None:
        stopped.append(number)
        service.fail(RunFailedError("the coordinator was stopped"))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    ticking = asyncio.create_task(service.tick())
    try:
        error = await service.over
        await asyncio.to_thread(recorder.close, finished=error is None)
        if error is not None:
            if not stopped:  # a peer that missed why its stream ended asks again
                await asyncio.sleep(FAREWELL_SECONDS)
            raise error
        faults.point("coordinator", "before summary")
        if not folder.finished:
            atomic.write_json(run / "summary.json", _summary(session, recorder, folder))
        faults.point("coordinator", "after summary")
        log.info("done: %s", run / "summary.json")
    finally:
        ticking.cancel()
        await server.stop(grace=1)


async def _start(service: CoordinatorService, listen: str, lock: Lock) -> Server:
    experiment = service.session.experiment
    options = [*OPTIONS, *limits(experiment, service.session.fingerprint)]
    server: Any = Server(options, Doorkeeper(lock, experiment.peer_names).guard)
    add_CoordinatorServicer_to_server(service, server)
    checks: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    name = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
    if lock.tokens is None:  # else it would answer whoever has none
        names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        shown: Any = reflection.aio.ReflectionServicer(names)  # pyright: ignore[reportAttributeAccessIssue]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(shown, server)
    try:
        lock.listen(server, listen)
    except RuntimeError:
        raise EntangledError(
            f"cannot listen on {listen}: port in use, or not this host's address? Choose another --listen"
        ) from None
    server.start()
    for part in ("", name):
        await checks.set(part, health_pb2.HealthCheckResponse.SERVING)
    return server


def _summary(session: Session, recorder: Recorder, folder: RunFolder) -> dict[str, object]:
    agreement = _agreement(session, folder.path)
    return {
        "experiment": session.experiment.name,
        "peers": {m.name: {**(m.final or {}), "agreement": agreement[m.name]} for m in session.members.values()},
        "missing": [m.name for m in session.members.values() if not m.done],
        "exchanges": session.complete,
        "wall_seconds": folder.seconds,
        "final_weight": session.weight,
        "chain": recorder.chain.hex(),
    }


def _agreement(session: Session, run: Path) -> dict[str, float | None]:
    """Per peer, the share of the last epoch's samples on which it agreed with the others; None without any others."""
    layout = session.experiment.layout(session.fingerprint.samples if session.fingerprint else 0)
    archive = Archive(run, session.experiment)
    agreeing, samples = dict.fromkeys(session.members, 0.0), dict.fromkeys(session.members, 0)
    for step in range(layout.steps_per_epoch):
        position = Position(layout.epochs - 1, step)
        measured = archive.statistics(position, layout.index(position))
        for name, agreement in measured.items() if len(measured) > 1 else ():
            agreeing[name] += float(agreement[_AGREEMENT]) * layout.rows(step)
            samples[name] += layout.rows(step)
    return {name: agreeing[name] / samples[name] if samples[name] else None for name in session.members}
