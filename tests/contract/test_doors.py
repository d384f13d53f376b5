"""Who gets in: certificates, tokens, both; over real gRPC (TLS on a unix socket is for `localhost`)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator import doors
from coordinator.doors import Lock
from entangled import PROTOCOL_VERSION, certificates, credentials, sending, tokens
from entangled.credentials import NOTHING, Credentials
from entangled.errors import MembershipError, UnreachableError
from entangled.participation.client import CoordinatorClient
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub
from tests.contract.conftest import Coordinate
from tests.contract.processes import DEADLINE, LiveCoordinator
from tests.contract.raw import join, on
from tests.support import data, experiment

WAIT: dict[str, Any] = {"timeout": DEADLINE, "wait_for_ready": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and tokens of an experiment's peers a and b, and certificates of another authority."""
    folder = tmp_path_factory.mktemp("secrets")
    certificates.init(folder / "certs", ["a", "b"], ["localhost"], 30)
    certificates.init(folder / "others", ["a", "b"], ["localhost"], 30)
    tokens.init(folder / "tokens", ["a", "b"])
    return folder


@pytest.fixture(scope="module")
def lock_of(made: Path) -> Callable[[str], Lock]:
    """A coordinator's lock, by its kind."""
    certs, digests = made / "certs" / "coordinator", made / "tokens" / "coordinator.json"

    def lock(kind: str) -> Lock:
        return doors.load(certs if "certificates" in kind else None, digests if "tokens" in kind else None)

    return lock


@pytest.fixture(scope="module")
def shown_by(made: Path) -> Callable[[str, str], Credentials]:
    """A holder's credentials, by the lock's kind."""

    def shown(kind: str, name: str) -> Credentials:
        certs = made / "certs" / name if "certificates" in kind else None
        return credentials.load(certs, made / "tokens" / f"{name}.token" if "tokens" in kind else None)

    return shown


KINDS = ["certificates", "tokens", "certificates and tokens"]
LockOf, ShownBy = Callable[[str], Lock], Callable[[str, str], Credentials]


def refused_everything(live: LiveCoordinator, shown: Credentials) -> set[str]:
    """What the coordinator says to each of its methods, which must all be the same refusal."""
    stub: Any = CoordinatorStub(live.channel(shown))
    calls: list[Callable[[], Any]] = [
        lambda: stub.GetExperiment(
            pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION), metadata=shown.metadata, **WAIT
        ),
        lambda: list(stub.GetSampleOrder(pb.GetSampleOrderRequest(), metadata=shown.metadata, **WAIT)),
        lambda: list(stub.Watch(pb.WatchRequest(), metadata=shown.metadata, **WAIT)),
        lambda: list(stub.Exchange(iter([join("a")]), metadata=shown.metadata, **WAIT)),
    ]
    said: set[str] = set()
    for call in calls:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        error: Any = raised.value
        refusal = from_status(error.code(), error.details(), error.trailing_metadata())
        assert type(refusal) is MembershipError, refusal
        said.add(str(refusal))
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_peers_that_show_who_they_are_run_to_the_end(
    coordinate: Coordinate, lock_of: LockOf, shown_by: ShownBy, kind: str
) -> None:
    settings = experiment(epochs=1)
    live = coordinate(settings, lock=lock_of(kind))
    peers = {name: live.peer(name, shown_by(kind, name)) for name in "ab"}
    for peer in peers.values():
        assert peer.join(data()) == 0
    orders = {name: peer.order(0) for name, peer in peers.items()}
    assert np.array_equal(orders["a"], orders["b"])
    raws = {name: live.raw(shown_by(kind, name)) for name in "ab"}  # the exchange itself is that of test_seam
    second = raws["a"]
    second.send(join("a", instance="second a"))
    assert "peer a is here already, from " in str(second.refused())
    watch = CoordinatorStub(live.channel(shown_by(kind, "operator")))
    seen = next(watch.Watch(pb.WatchRequest(), metadata=shown_by(kind, "operator").metadata, **WAIT))  # pyright: ignore
    assert [(p.name, p.connected) for p in seen.peers] == [("a", True), ("b", True)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_peer_speaks_as_another(coordinate: Coordinate, lock_of: LockOf, shown_by: ShownBy, kind: str) -> None:
    live = coordinate(experiment(), lock=lock_of(kind))
    for name in ("b", "operator"):
        raw = live.raw(shown_by(kind, name))
        raw.send(join("a"))
        refusal = raw.refused()
        assert type(refusal) is MembershipError
        assert refusal.message.startswith(f"{name} may not speak as a")
        assert (refusal.expected, refusal.got) == (name, "a")
        assert raw.received == []
    a = live.raw(shown_by(kind, "a"))
    assert a.joins("a").complete == 0
    a.send(on(1, join("b")))
    assert str(a.refused()).startswith("a may not speak as b")
    hidden = live.raw(shown_by(kind, "a"))
    hidden.send(sending.bundle_of_peers([on(1, join("a")), on(2, join("b"))]))
    assert str(hidden.refused()).startswith("a may not speak as b")


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_no_peer_of_the_experiment_gets_nothing(
    coordinate: Coordinate, lock_of: LockOf, shown_by: ShownBy, kind: str
) -> None:
    live = coordinate(experiment(("b", "c")), lock=lock_of(kind))
    said = refused_everything(live, shown_by(kind, "a"))
    assert said == {"no such peer in this experiment (expected b or c or operator; got a)"}


def test_without_the_right_token_there_is_nothing_but_health(
    coordinate: Coordinate, lock_of: LockOf, made: Path
) -> None:
    live = coordinate(experiment(), lock=lock_of("tokens"))
    assert refused_everything(live, NOTHING) == {
        "this coordinator wants a token (--token-file) (expected nothing; got no token)"
    }
    wrong = tokens.read(made / "tokens" / "a.token")[::-1]
    assert refused_everything(live, Credentials(token=wrong)) == {
        "this token is nobody's in this run (expected nothing; got another token)"
    }
    health = health_pb2_grpc.HealthStub(live.channel())
    assert health.Check(health_pb2.HealthCheckRequest(), **WAIT).status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(live.channel())
    with pytest.raises(grpc.RpcError) as raised:
        list(reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), **WAIT))
    unknown: Any = raised.value
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED
    assert wrong not in (live.run / "coordinator.log").read_text()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port of this host that nobody listens on."""
    monkeypatch.delenv("ENTANGLED_TOKEN", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unreachable(address: str, shown: Credentials) -> str:
    with pytest.raises(UnreachableError) as raised:
        CoordinatorClient(address, "a", 1.0, shown)
    return str(raised.value)


def test_who_cannot_shake_hands_is_told_why(
    coordinate: Coordinate, lock_of: LockOf, shown_by: ShownBy, made: Path, port: int
) -> None:
    live = coordinate(experiment(), lock=lock_of("certificates"), address=f"localhost:{port}")
    address, a = live.address, shown_by("certificates", "a")
    CoordinatorClient(address, "a", DEADLINE, a).close()  # it is there
    before = f"no coordinator answers at {address} within 1 s: "
    assert unreachable(address, NOTHING).startswith(before + "it wants TLS; give the folder")
    others = credentials.load(made / "others" / "a")
    assert unreachable(address, others) == (
        before + "the certificate that it shows is not good: unable to get local issuer certificate"
    )
    mixed = Credentials(certificates.Certificates(made / "others" / "a", a.certificates.authority, *pair(others)))  # pyright: ignore
    assert unreachable(address, mixed) == before + f"it refuses the certificate of nobody in {made}/others/a"
    by_number = f"127.0.0.1:{port}"
    assert "certificate is not valid for '127.0.0.1'" in unreachable(by_number, a)


def pair(shown: Credentials) -> tuple[bytes, bytes]:
    found = shown.certificates
    assert found is not None
    assert found.certificate is not None
    assert found.key is not None
    return found.certificate, found.key


def test_a_peer_that_wants_tls_does_not_do_without(coordinate: Coordinate, shown_by: ShownBy, port: int) -> None:
    live = coordinate(experiment(), address=f"localhost:{port}")
    CoordinatorClient(live.address, "a", DEADLINE).close()
    said = unreachable(live.address, shown_by("certificates", "a"))
    assert said.endswith("within 1 s: it speaks no TLS")


def test_a_peers_certificate_does_not_make_a_coordinator(
    coordinate: Coordinate, shown_by: ShownBy, made: Path, port: int
) -> None:
    live = coordinate(experiment(), lock=doors.load(made / "certs" / "b", None), address=f"localhost:{port}")
    said = unreachable(live.address, shown_by("certificates", "a"))
    assert "the certificate that it shows is not good" in said
