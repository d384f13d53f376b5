"""Several peers in one process: what one of them does wrong, and what becomes of the others."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from entangled import credentials, process
from entangled.credentials import NOTHING, Credentials
from entangled.errors import CredentialsError, EntangledError, ExperimentError, MembershipError
from entangled.exchange_log import read
from entangled.experiment import Experiment, parse
from entangled.participation.peer import Peer
from peer import several
from tests.contract.conftest import Coordinate
from tests.contract.processes import DEADLINE, LiveCoordinator
from tests.support import experiment

DATA = {"data": "mnist[:10]"}


def nothing(_: Experiment) -> None:
    pass


def uniform(peer: Peer) -> None:
    for batch in peer:
        batch.exchange(np.full((len(batch), peer.classes), 1 / peer.classes))


def fails(peer: Peer) -> None:
    """As `uniform`, but for peer a, which cannot go on after its second batch."""
    for batch in peer:
        if peer.name == "a" and batch.step == 2:
            raise ValueError("no memory left")
        batch.exchange(np.full((len(batch), peer.classes), 1 / peer.classes))


def train(live: LiveCoordinator, names: str, work=uniform, shown: Credentials = NOTHING) -> None:
    several.train(list(names), live.address, DEADLINE, shown, nothing, work)


def test_peers_of_one_process_exchange_with_each_other_and_share_their_data(coordinate: Coordinate) -> None:
    live = coordinate(experiment(("a", "b", "c"), **DATA))
    seen: dict[str, tuple[str, int]] = {}

    def work(peer: Peer) -> None:
        seen[peer.name] = threading.current_thread().name, id(peer.dataset.x)
        uniform(peer)

    train(live, "abc", work)
    assert live.ended() is None
    assert {name: thread for name, (thread, _) in seen.items()} == {name: name for name in "abc"}
    assert len({place for _, place in seen.values()}) == 1
    assert len(list(read(live.run))) == 3 * live.experiment.layout(10).positions


def test_a_peer_that_fails_is_why_the_process_and_the_run_do(coordinate: Coordinate) -> None:
    live = coordinate(experiment(("a", "b", "c"), **DATA))
    with pytest.raises(EntangledError, match=r"^ValueError: no memory left$"):
        train(live, "abc", fails)
    assert str(live.ended()) == "peer a failed: ValueError: no memory left"


def test_where_the_experiment_goes_on_without_a_peer_so_does_its_process(coordinate: Coordinate) -> None:
    live = coordinate(experiment(("a", "b", "c"), on_missing="continue", missing_after=30.0, **DATA))
    train(live, "abc", fails)
    assert live.ended() is None
    members = [row.members for row, _ in read(live.run) if row.peer == "b"]
    assert members == [("a", "b", "c")] * 2 + [("b", "c")] * 4


def test_what_proves_one_name_is_not_shown_for_several() -> None:
    with pytest.raises(CredentialsError, match="each peer needs a process of its own"):
        several.train(["a", "b"], "unix:nowhere", 1.0, credentials.Credentials(token="x" * 43), nothing, uniform)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        ("aa", MembershipError, "a peer is named twice"),
        ("az", MembershipError, "no such peer in this experiment"),
        ("ab", ExperimentError, "a and b would be in one process, which has one threads"),
    ],
)
def test_who_cannot_share_a_process_is_told_why(
    coordinate: Coordinate, names: str, kind: type[EntangledError], words: str
) -> None:
    peers = {"a": {"model": "mlp"}, "b": {"model": "mlp", "threads": 2}}
    values = {"name": "x", "epochs": 1, "batch_size": 4, "exchange": {"data": "mnist"}, "peers": peers}
    live = coordinate(parse(values, "x"))
    with pytest.raises(kind, match=words):
        train(live, names)


def test_each_peer_has_its_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root", logging.INFO)
    monkeypatch.setattr(logging, "root", root)
    process.log_apart({name: tmp_path / f"{name}.log" for name in "ab"})
    for name in "abc":
        thread = threading.Thread(target=root.info, args=("%s speaks", name), name=name)
        thread.start()
        thread.join()
    for handler in root.handlers:
        handler.close()
    assert {path.stem: path.read_text().split(" ", 1)[1] for path in tmp_path.iterdir()} == {
        name: f"INFO {name} speaks\n" for name in "ab"
    }
