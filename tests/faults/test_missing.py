"""Guarantee 6 where the others go on without a peer that is away: the log is what was trained on, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entangled.exchange_log import read
from entangled.log.reader import open_run
from entangled.log.verify import verify
from tests.faults.launched import Launched, until
from tests.integration.runs import entangled

SETTINGS = [
    "smoke",
    "--set=epochs=12",
    "--set=exchange.data=mnist[:800]",
    "--set=batch_size=32",
    "--set=checkpoint.steps=10",
    "--set=peers.mlp.model=tests.integration.models:noisy",
    "--set=exchange.on_missing=continue",
    "--set=exchange.missing_after=0.1",
]


def members(run: Path) -> list[tuple[str, ...]]:
    """Who took part, exchange by exchange; as far as it can be read while it is written."""
    return [row.members for row, _ in read(run) if row.peer == row.members[0]]


def test_a_peer_that_was_away_catches_up_and_every_replay_is_equal_to_the_bit(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mlp is killed; while it starts again, the cnn goes on alone, and the coordinator is killed, too."""
    faults = tmp_path / "faults"
    faults.mkdir()
    for fault in ("mlp.before-update.30", "coordinator.after-log-write.45"):
        (faults / fault).touch()
    monkeypatch.setenv("ENTANGLED_FAULTS", str(faults))
    launched = launch(*SETTINGS)
    until(lambda: (launched.run / "exchange").exists() and ("cnn",) in members(launched.run), "the cnn to go on alone")
    cnn = launched.role("peer cnn")

    os.kill(cnn, signal.SIGSTOP)  # only slow, so that the mlp is back before the end
    log = launched.run / "peers" / "mlp" / "peer.log"
    until(lambda: "goes on from its checkpoint" in log.read_text(), "the mlp to be back")
    os.kill(cnn, signal.SIGCONT)
    assert launched.ended() == 0, launched.errors()
    assert list(faults.iterdir()) == []

    verdict = verify(open_run(launched.run))
    assert (verdict.fault, verdict.exchanges, verdict.finished) == (None, 300, True)
    found = members(launched.run)
    assert {("cnn", "mlp"), ("cnn",)} <= set(found)  # ("mlp",) too, if the coordinator dies while the cnn is stopped
    assert found[-1] == ("cnn", "mlp")
    assert sum(len(there) == 1 for there in found) == verdict.not_by_all

    def replay(peer: str) -> subprocess.CompletedProcess[str]:
        return entangled("replay", str(launched.run), peer, "--run-dir", str(tmp_path / peer))

    with ThreadPoolExecutor(2) as pool:
        replays = list(pool.map(replay, ("cnn", "mlp")))
    for done in replays:
        assert done.returncode == 0, done.stderr
        assert "equal the logged ones to the bit" in done.stdout
        assert "final weights: equal to the bit" in done.stdout
