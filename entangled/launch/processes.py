"""Role processes on this machine: start them, notice when one fails, leave none behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STOP_SECONDS = 3.0


class Role:
    """One role process; what it prints goes to `log`."""

    def __init__(self, name: str, arguments: list[str], log: Path, peers: int = 1) -> None:
        """Start `python -m ARGUMENTS`; it dies with this process, however this one ends."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = log
        self.peers = peers
        """How many it trains, if it trains any."""
        self.restarts = 0
        """How often it was started again."""
        self._arguments = arguments
        self.process = self._start()

    def restart(self) -> None:
        """Start it again after it has ended."""
        self.restarts += 1
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self.process.poll()

    def why(self) -> str:
        """One line on why it ended: its own error if it printed one."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        code = self.exit_code or 0
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}: {lines[-1] if lines else 'it printed nothing'}"


def stop(roles: list[Role]) -> None:
    """End every role: politely, and after `STOP_SECONDS` for certain."""
    running = [role for role in roles if role.exit_code is None]
    for role in running:
        role.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for role in running:
        try:
            role.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(role.process.pid, signal.SIGKILL)
            role.process.wait()


def _die_with_parent() -> Callable[[], None]:
    library = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        library.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare
