"""Live progress of a run: a line per peer, or plain lines where the output is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from entangled.experiment import Experiment
from entangled.v1 import exchange_pb2 as pb

PLAIN_SECONDS = 10.0


class Progress:
    """Shows each `Activity` it is given. A context manager."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self._experiment = experiment
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._began: tuple[float, int] | None = None
        self._printed = 0.0
        self._epochs: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, activity: pb.Activity) -> None:
        """Show what is going on."""
        now = time.monotonic()
        if self._began is None and activity.complete:
            self._began = now, activity.complete
        rate = 0.0
        if self._began and now > self._began[0]:
            rate = (activity.complete - self._began[1]) / (now - self._began[0])
        if self._live:
            self._live.update(self._table(activity, rate))
        else:
            self._lines(activity, rate, now)

    def _table(self, activity: pb.Activity, rate: float) -> Table:
        table = Table.grid(padding=(0, 2))
        steps = max(activity.total // self._experiment.epochs, 1)
        for peer in activity.peers:
            state = "done" if peer.done else f"epoch {peer.epoch + 1}/{self._experiment.epochs}"
            table.add_row(
                f"[bold]{peer.name}[/]" if peer.connected or peer.done else f"[dim]{peer.name}[/]",
                state if peer.connected or peer.done else "away" if peer.epoch or peer.step else "starting",
                ProgressBar(total=steps, completed=steps if peer.done else activity.complete % steps, width=24),
                *_numbers(peer),
                f"λ {activity.weight:.4f}",
                f"{rate:.0f} exchanges/s",
                _left(activity, rate),
            )
        return table

    def _lines(self, activity: pb.Activity, rate: float, now: float) -> None:
        ended = [p for p in activity.peers if self._epochs.get(p.name, 0) != p.epoch]
        if not ended and now - self._printed < PLAIN_SECONDS and not activity.finished:
            return
        self._printed = now
        for peer in activity.peers:
            self._epochs[peer.name] = peer.epoch
            self._console.print(
                f"{peer.name}: epoch {peer.epoch + 1}/{self._experiment.epochs} step {peer.step + 1}, "
                f"{', '.join(_numbers(peer))}, λ {activity.weight:.4f}, {rate:.0f} exchanges/s, "
                f"{_left(activity, rate)}",
                highlight=False,
                soft_wrap=True,
            )


def _numbers(peer: pb.Activity.Peer) -> tuple[str, str]:
    if "loss" not in peer.values:
        return "loss –", "accuracy –"
    return f"loss {peer.values['loss']:.4f}", f"accuracy {peer.values['accuracy']:.2%}"


def _left(activity: pb.Activity, rate: float) -> str:
    if not rate:
        return "… left"
    seconds = int((activity.total - activity.complete) / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
