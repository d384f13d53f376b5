"""The health check against real gRPC servers in this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from entangled.errors import EntangledError, MembershipError, UnreachableError
from entangled.launch.health import check
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorServicer, add_CoordinatorServicer_to_server

SECONDS = 20.0


class Watched(CoordinatorServicer):
    """Says what a coordinator would while cnn trains, mlp has not come yet and gru is done."""

    def Watch(self, request: pb.WatchRequest, context: Any) -> Iterator[pb.Activity]:  # noqa: N802
        peer = pb.Activity.Peer
        yield pb.Activity(peers=[peer(name="cnn", connected=True), peer(name="mlp"), peer(name="gru", done=True)])


def serve(address: str, *, with_health: bool) -> tuple[grpc.Server, grpc_health.HealthServicer]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = grpc_health.HealthServicer()
    if with_health:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        add_CoordinatorServicer_to_server(Watched(), server)
    server.add_insecure_port(address)
    server.start()
    return server, servicer


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/health.sock"


@pytest.fixture
def servicer(address: str) -> Iterator[grpc_health.HealthServicer]:
    server, servicer = serve(address, with_health=True)
    yield servicer
    server.stop(None).wait()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "entangled.launch.health", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_a_serving_coordinator_is_well(servicer: grpc_health.HealthServicer, address: str) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    check(address, None, SECONDS)


def test_one_that_does_not_serve_is_not(servicer: grpc_health.HealthServicer, address: str) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(EntangledError, match="does not serve") as refused:
        check(address, None, SECONDS)
    assert (refused.value.expected, refused.value.got) == ("SERVING", "NOT_SERVING")


def test_nobody_there(address: str) -> None:
    with pytest.raises(UnreachableError, match=r"no coordinator answers at unix:.*health\.sock"):
        check(address, None, SECONDS)


@pytest.mark.parametrize("peer", [None, "cnn"])
def test_another_service_is_no_coordinator(address: str, peer: str | None) -> None:
    server, _ = serve(address, with_health=False)
    with pytest.raises(EntangledError, match="is no coordinator: UNIMPLEMENTED"):
        check(address, peer, SECONDS)
    server.stop(None).wait()


@pytest.mark.parametrize("peer", ["cnn", "gru"])
@pytest.mark.usefixtures("servicer")
def test_a_peer_that_is_connected_or_done_is_well(address: str, peer: str) -> None:
    check(address, peer, SECONDS)


@pytest.mark.usefixtures("servicer")
def test_a_peer_that_is_not_connected_is_not(address: str) -> None:
    with pytest.raises(MembershipError, match="no connection to peer mlp"):
        check(address, "mlp", SECONDS)


@pytest.mark.usefixtures("servicer")
def test_an_unknown_peer_is_named_with_the_known_ones(address: str) -> None:
    with pytest.raises(MembershipError, match="expected cnn or mlp or gru; got rnn"):
        check(address, "rnn", SECONDS)


def test_the_command_exits_with_0_in_silence_or_with_1_and_one_line(
    servicer: grpc_health.HealthServicer, address: str
) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    well, unwell = command(address), command(address, "--peer", "mlp")
    assert (well.returncode, well.stdout, well.stderr) == (0, "", "")
    assert (unwell.returncode, unwell.stdout) == (1, "")
    assert unwell.stderr == f"error: the coordinator at {address} has no connection to peer mlp\n"
