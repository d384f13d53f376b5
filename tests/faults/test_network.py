"""Guarantees 2, 3 and 6 over a network that is late and breaks: nothing in the result changes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entangled.exchange_log import read
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from tests.contract.processes import LiveCoordinator, RemotePeer
from tests.faults.proxy import Proxy
from tests.support import SAMPLES, data, experiment, prediction

Disturb = Callable[[int], None]
CUTS = {3: 0, 7: 2, 8: 0, 12: 3, 20: 0}
"""After so many exchanges of peer b, its connection is cut, and so many attempts at a new one after that."""


def train(peer: RemotePeer, name: str, settings: Experiment, disturb: Disturb = lambda _: None) -> list[SoftTarget]:
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


@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_network_that_breaks_changes_nothing(tmp_path: Path, delay: float) -> None:
    settings = experiment(epochs=10)
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    undisturbed = LiveCoordinator(settings, tmp_path / "undisturbed")
    disturbed = LiveCoordinator(settings, tmp_path / "disturbed")
    try:
        expected = run(undisturbed, undisturbed.peer("b"), lambda _: None)
        with Proxy(disturbed.address.removeprefix("unix:"), delay) as proxy:
            b = disturbed.peer_at(f"127.0.0.1:{proxy.port}", "b")

            def disturb(index: int) -> None:
                if index in CUTS:
                    proxy.cut(CUTS[index])

            got = run(disturbed, b, disturb)
            assert proxy.accepted == 1 + len(CUTS)
            assert proxy.refused == sum(CUTS.values())
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
