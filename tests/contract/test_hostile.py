"""Whatever strangers send, the peers' run goes on, memory and log stay bounded (guarantee 7)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.lobby import CONNECTIONS, SMALL_BYTES, STREAMS
from entangled.experiment import Experiment
from entangled.v1 import exchange_pb2 as pb
from tests.contract import hostile
from tests.contract.conftest import Coordinate
from tests.contract.processes import LiveCoordinator
from tests.contract.raw import RawPeer, predict
from tests.property.test_wire import damaged
from tests.support import SAMPLES, experiment

METHODS = ["Exchange", "GetExperiment", "GetSampleOrder", "Watch", "Nonsense"]
GROWTH_MB = 120
"""The coordinator may grow by so much while it is flooded. Each message of up to 1.1 MB could be held for as many as
may wait (20), and each call that is begun takes some 7 KB."""


@pytest.fixture
def trained() -> Experiment:
    return experiment(epochs=20)


@pytest.fixture
def live(coordinate: Coordinate, trained: Experiment) -> LiveCoordinator:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return coordinate(trained, address=f"127.0.0.1:{port}")


class Run:
    """Two honest peers, who go on from one exchange to the next."""

    def __init__(self, live: LiveCoordinator) -> None:
        self.live, self.index = live, 0
        self.peers: dict[str, RawPeer] = {name: live.raw() for name in "ab"}
        for name, peer in self.peers.items():
            peer.joins(name, instance=f"honest {name}")

    def step(self) -> None:
        """One more exchange; after the last, nothing."""
        if self.index < self.live.experiment.layout(SAMPLES).positions:
            for name, peer in self.peers.items():
                peer.send(predict(self.live.experiment, name, self.index))
            for peer in self.peers.values():
                peer.receive("soft_target")
            self.index += 1

    def finish(self) -> None:
        """All that is left, and goodbye."""
        for _ in range(self.live.experiment.layout(SAMPLES).positions):
            self.step()
        for peer in self.peers.values():
            peer.leaves(self.live.experiment)
        assert self.live.ended() is None


@contextlib.contextmanager
def bounded(live: LiveCoordinator) -> Iterator[None]:
    """The coordinator's memory must not grow by more than `GROWTH_MB` meanwhile, and its log not by many lines."""
    before = live.memory_mb()
    yield
    assert live.memory_mb() - before < GROWTH_MB
    log = (live.run / "coordinator.log").read_text()
    assert len(log.splitlines()) < 200
    assert "Traceback" not in log


JOINS = st.builds(
    lambda peer, instance, origin, version: pb.PeerMessage(
        join=pb.Join(protocol_version=version, peer=peer, instance=instance, origin=origin)
    ).SerializeToString(),
    st.text(max_size=200),
    st.text(max_size=300),
    st.text(max_size=300),
    st.integers(0, 2**32 - 1),
)
MESSAGES = st.lists(st.one_of(JOINS, damaged(), st.binary(max_size=80)), max_size=4)


def test_guarantee_7_anything_on_the_wire_and_the_peers_go_on(live: LiveCoordinator) -> None:
    run = Run(live)

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=2000), st.sampled_from(METHODS), MESSAGES, st.integers(0, 2**32 - 1))
    def attack(junk: bytes, method: str, messages: list[bytes], claimed: int) -> None:
        with hostile.connect(live.address) as raw:  # bytes
            raw.sendall(junk)
        with hostile.connect(live.address) as raw, contextlib.suppress(OSError):  # frames, and bytes for a message
            raw.sendall(hostile.hello() + hostile.headers(method) + hostile.begin(claimed) + junk)
        stranger = RawPeer(live.address, 30.0, method=method)  # messages, most of which are none
        stranger.send(*messages)
        stranger.end()
        if method == "Watch":  # which goes on until the run is over
            stranger.close()
        else:
            stranger.over()
        run.step()

    with bounded(live):
        attack()
    run.finish()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts another process's files in /proc")
def test_guarantee_7_thousands_of_connections_and_calls(live: LiveCoordinator) -> None:
    run, open_sockets = Run(live), contextlib.ExitStack()
    run.step()
    with bounded(live), open_sockets:
        for number in range(600):  # more than there may be, most of which say nothing
            with contextlib.suppress(OSError):
                raw = open_sockets.enter_context(hostile.connect(live.address))
                if number % 4 == 0:
                    calls = [hostile.headers(METHODS[number % 5], 2 * call + 1) for call in range(STREAMS)]
                    raw.sendall(hostile.hello() + b"".join(calls))
        run.step()
        assert len(os.listdir(f"/proc/{live.pid}/fd")) < CONNECTIONS + 60
        run.step()
    again = live.raw()  # when they are gone, there is a place again
    assert again.joins("a", instance="honest a").complete == run.index
    run.peers["a"] = again
    run.finish()


def test_guarantee_7_messages_that_never_end(live: LiveCoordinator) -> None:
    run = Run(live)
    with bounded(live), contextlib.ExitStack() as open_sockets:
        for size in (10**6, 2**31, 2**32 - 1):
            for _ in range(20):
                raw = open_sockets.enter_context(hostile.connect(live.address))
                raw.sendall(hostile.hello() + hostile.headers("Exchange") + hostile.begin(size))
                raw.sendall(hostile.frame(hostile.DATA, 0, 1, bytes(16_000)) * 4)  # as much as an unread stream takes
        run.step()
    run.finish()


def test_what_is_larger_than_any_prediction_is_refused(coordinate: Coordinate) -> None:
    settings = experiment(classes=3)
    live = coordinate(settings)
    peer = live.raw()
    peer.joins("a")
    peer.send(bytes(SMALL_BYTES + 4 * 3 * 4 + 1))
    assert "too large" in str(peer.refused())
