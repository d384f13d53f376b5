"""Look-ahead under kills: what is in flight survives everybody, and the log replays."""

from __future__ import annotations

from pathlib import Path

from entangled.exchange_log import read
from tests.faults.test_recovery import schedule
from tests.integration.runs import entangled

AHEAD = [
    "smoke",
    "--set=epochs=3",
    "--set=exchange.data=mnist[:500]",
    "--set=batch_size=32",
    "--set=checkpoint.steps=6",
    "--set=exchange.lookahead=5",
]
FAULTS = [
    "coordinator.before-reply.31",
    "cnn.before-update.15",
]


def test_guarantee_6_kills_change_nothing_of_a_run_that_looks_ahead(tmp_path: Path) -> None:
    """That nothing has changed is shown by training one peer again, alone and in peace, from what the others said."""
    run, scheduled = tmp_path / "run", schedule(tmp_path / "faults", FAULTS)
    done = entangled("run", *AHEAD, "--run-dir", str(run), faults=scheduled)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in scheduled.iterdir()) == [], "a fault that was scheduled did not happen"
    assert {row.staleness for row, _ in read(run)} == {0, 1, 2, 3, 4, 5}
    assert "another prediction" not in (run / "coordinator.log").read_text()
    verified = entangled("log", "verify", str(run))
    assert verified.returncode == 0, verified.stdout
    again = entangled("replay", str(run), "cnn", "--run-dir", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert "predictions: all 48 equal the logged ones to the bit" in again.stdout
    assert "final weights: equal to the bit" in again.stdout
