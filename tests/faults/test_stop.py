"""A run that is told to stop: one line, exit code 1, a log that is whole, and nobody left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from entangled.exchange_log import chain, genesis, read
from tests.faults.launched import ENDLESS, Launched


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing_behind_but_its_log(
    launch: Callable[..., Launched], number: signal.Signals
) -> None:
    launched = launch(*ENDLESS)
    launched.until_it_exchanges()
    assert len({launched.role(name) for name in ("coordinator", "peer cnn", "peer mlp")}) == 3
    launched.process.send_signal(number)
    assert launched.ended() == 1
    assert launched.errors() == [f"stopped; to go on: entangled run --resume {launched.run}"]

    link, rows = genesis((launched.run / "experiment.toml").read_text()), 0
    for row, stored in read(launched.run):
        link, rows = chain(link, row), rows + 1
        assert link == stored
        assert (row.index, row.peer) == ((rows - 1) // 2, ("cnn", "mlp")[(rows - 1) % 2])
    assert rows >= 8
    assert not (launched.run / "summary.json").exists()
