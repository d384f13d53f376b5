"""Guarantees 2, 3 and 6 over a network that is late and breaks: nothing in the result changes."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from entangled.alignment import Position
from entangled.errors import PatienceError
from entangled.exchange_log import read
from entangled.experiment import Experiment
from entangled.participation.client import CoordinatorClient
from entangled.participation.link import Link
from entangled.participation.seam import Exchange, SoftTarget
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub
from tests.contract.processes import DEADLINE, LiveCoordinator, RemotePeer
from tests.contract.raw import join
from tests.faults.launched import until
from tests.faults.proxy import Proxy
from tests.support import SAMPLES, data, experiment, prediction

Disturb = Callable[[int], None]
CUTS = {3: 0, 7: 2, 8: 0, 12: 3, 20: 0}
"""After so many exchanges of peer b, its connection is cut, and so many attempts at a new one after that."""


def train(peer: Exchange, name: str, settings: Experiment, disturb: Disturb = lambda _: None) -> list[SoftTarget]:
    layout = settings.layout(SAMPLES)
    peer.join(data())
    targets: list[SoftTarget] = []
    for index in range(layout.positions):
        position = layout.position(index)
        ids = layout.batch(peer.order(position.epoch), position.step)
        targets.append(peer.exchange(position, ids, prediction(name, position, len(ids))))
        disturb(index)
    peer.finish({"test_loss": 1.0})
    return targets


def run(coordinator: LiveCoordinator, b: RemotePeer, disturb: Disturb) -> list[list[SoftTarget]]:
    with ThreadPoolExecutor(2) as pool:
        settings = coordinator.experiment
        both = [
            pool.submit(train, coordinator.peer("a"), "a", settings),
            pool.submit(train, b, "b", settings, disturb),
        ]
        targets = [training.result() for training in both]
    assert coordinator.ended() is None
    return targets


Cutting = Callable[[Proxy, int], None]


def breaks(proxy: Proxy, index: int) -> None:
    if index in CUTS:
        proxy.cut(CUTS[index])


def breaks_on_one_side(proxy: Proxy, index: int) -> None:
    """The coordinator has two connections of one peer then."""
    if index in CUTS:
        proxy.cut(unnoticed=True)


def freezes(proxy: Proxy, index: int) -> None:
    """What a firewall does that forgets a connection; nothing but silence tells."""
    if index in (3, 12):
        proxy.freeze()


@pytest.mark.parametrize(
    ("cutting", "delay", "connections", "refused"),
    [
        (breaks, 0.0, 1 + len(CUTS), sum(CUTS.values())),
        (breaks, 0.002, 1 + len(CUTS), sum(CUTS.values())),
        (breaks_on_one_side, 0.0, 1 + len(CUTS), 0),
        (freezes, 0.0, 3, 0),
    ],
    ids=["breaks", "is late and breaks", "breaks on one side", "freezes"],
)
def test_a_network_that_misbehaves_changes_nothing(
    tmp_path: Path, cutting: Cutting, delay: float, connections: int, refused: int
) -> None:
    settings = experiment(epochs=10)
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    undisturbed = LiveCoordinator(settings, tmp_path / "undisturbed")
    disturbed = LiveCoordinator(settings, tmp_path / "disturbed", beat=0.05)
    try:
        expected = run(undisturbed, undisturbed.peer("b"), lambda _: None)
        with Proxy(disturbed.address.removeprefix("unix:"), delay) as proxy:
            b = disturbed.peer_at(f"127.0.0.1:{proxy.port}", "b", beat=0.2 if cutting is freezes else None)
            got = run(disturbed, b, lambda index: cutting(proxy, index))
            if cutting is freezes:
                assert proxy.accepted >= connections  # on a busy machine, silence may be nothing but slowness
            else:
                assert proxy.accepted == connections
            assert proxy.refused == refused
    finally:
        undisturbed.close()
        disturbed.close()
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.weight == other.weight
            assert one.probabilities.tobytes() == other.probabilities.tobytes()
    for (one, _), (other, _) in zip(read(disturbed.run), read(undisturbed.run), strict=True):
        assert (one.position, one.peer, one.digest) == (other.position, other.peer, other.digest)
        assert one.prediction.tobytes() == other.prediction.tobytes()


def test_a_stream_that_breaks_is_joined_again_by_all_of_its_peers(tmp_path: Path) -> None:
    """Three peers of one process, whose stream breaks, and breaks on one side, while their messages are on the way."""
    settings = experiment(("a", "b", "c"), epochs=6)
    live = LiveCoordinator(settings, tmp_path)
    try:
        with Proxy(live.address.removeprefix("unix:")) as proxy, ThreadPoolExecutor(3) as pool:
            link = Link(f"127.0.0.1:{proxy.port}", DEADLINE, several=True)
            cuts = {2: False, 5: True, 9: False}

            def disturb(index: int) -> None:
                if index in cuts:
                    proxy.cut(unnoticed=cuts[index])

            peers = {name: CoordinatorClient(link.address, name, link=link) for name in "abc"}
            training = [
                pool.submit(train, peers[name], name, settings, disturb if name == "b" else lambda _: None)
                for name in peers
            ]
            targets = [future.result(DEADLINE) for future in training]
            assert proxy.accepted == 1 + len(cuts)
            link.close()
        assert live.ended() is None
    finally:
        live.close()
    assert {len(got) for got in targets} == {settings.layout(SAMPLES).positions}
    rows = [row for row, _ in read(live.run)]
    assert [(row.index, row.peer) for row in rows] == [(i, p) for i in range(len(targets[0])) for p in "abc"]
    for row in rows:
        assert row.prediction.tobytes() == prediction(row.peer, row.position, len(row.sample_ids)).tobytes()


def test_a_peer_that_goes_without_a_word_is_missed_alone(tmp_path: Path) -> None:
    """The others of its process join again without it, and the coordinator knows whom to wait for."""
    settings = experiment(("a", "b", "c"), patience=2.0)
    live = LiveCoordinator(settings, tmp_path)
    try:
        link = Link(live.address, DEADLINE, several=True)
        peers = {name: CoordinatorClient(live.address, name, link=link) for name in "abc"}
        for peer in peers.values():
            peer.join(data())
        peers["c"].close()
        with ThreadPoolExecutor(2) as pool:
            ids = settings.layout(SAMPLES).batch(peers["a"].order(0), 0)
            start = Position(0, 0)
            waiting = [pool.submit(peers[n].exchange, start, ids, prediction(n, start, len(ids))) for n in "ab"]
            for future in waiting:
                with pytest.raises(PatienceError, match=r"waited 2 s at epoch 0 step 0 for c \(not connected\)$"):
                    future.result(DEADLINE)
        link.close()
    finally:
        live.close()


def test_an_idle_connection_is_never_silent_in_either_direction(tmp_path: Path) -> None:
    """What stands between the two and cuts idle connections, after some minutes, finds none."""
    live = LiveCoordinator(experiment(), tmp_path, beat=0.02)
    try:
        with Proxy(live.address.removeprefix("unix:")) as proxy:
            b = live.peer_at(f"127.0.0.1:{proxy.port}", "b", beat=0.02)
            b.join(data())
            up, down = proxy.up, proxy.down
            until(lambda: proxy.up > up + 20 and proxy.down > down + 20, "heartbeats in both directions")
            assert proxy.accepted == 1
    finally:
        live.close()


def test_no_ping_is_one_too_many(tmp_path: Path) -> None:
    """Keepalive far more often than gRPC's servers suffer by themselves, on a stream on which nothing else passes."""
    live = LiveCoordinator(experiment(), tmp_path)
    try:
        with Proxy(live.address.removeprefix("unix:")) as proxy:
            options = [
                ("grpc.keepalive_time_ms", 10),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.max_reconnect_backoff_ms", 200),
            ]
            with grpc.insecure_channel(f"127.0.0.1:{proxy.port}", options=options) as channel:
                stub: Any = CoordinatorStub(channel)
                sent: queue.SimpleQueue[pb.PeerMessage | None] = queue.SimpleQueue()
                sent.put(join("a"))
                answers = stub.Exchange(iter(sent.get, None), wait_for_ready=True)
                assert [next(answers).WhichOneof("kind") for _ in range(2)] == ["welcome", "durable"]
                up = proxy.up
                until(lambda: proxy.up > up + 4 or not answers.is_active(), "more pings than it takes")
                assert answers.is_active()
                sent.put(None)
    finally:
        live.close()
