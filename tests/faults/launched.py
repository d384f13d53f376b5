"""A real run by its command, to be disturbed; every step waits for something that was seen, up to a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from entangled.exchange_log import partitions

DEADLINE = 180.0
"""Seconds after which what has not come will not come; nothing takes so long when all is well."""

ENDLESS = ["smoke", "--set", "epochs=100000", "--set", "exchange.data=mnist[:500]"]
"""Small enough to begin soon, and never done by itself."""


def until(seen: Callable[[], object], what: str) -> None:
    """Return as soon as `seen` is true; fail after the deadline."""
    give_up = time.monotonic() + DEADLINE
    while not seen():
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.02)


def processes(mark: str) -> dict[int, str]:
    """The living processes whose command line holds `mark`, but for this one."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended just now
        if mark in command and int(folder.name) != os.getpid():
            found[int(folder.name)] = command
    return found


def kill(mark: str) -> None:
    """Kill the processes whose command line holds `mark`, but for this one."""
    for pid in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Launched:
    """`entangled run` with a run folder of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.run = folder / "run"
        self._stderr = folder / "stderr"
        command = [sys.executable, "-c", "from entangled.cli.main import main; main()", "run", *arguments]
        with (folder / "stdout").open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen([*command, "--run-dir", str(self.run)], stdout=stdout, stderr=stderr)

    def role(self, name: str) -> int:
        """The process id of `coordinator` or `peer NAME`."""
        (found,) = [pid for pid, command in processes(str(self.run)).items() if f" -m {name} " in command]
        return found

    def exchanges(self) -> bool:
        """Whether the peers have exchanged a whole epoch; fails if the run has ended instead."""
        assert self.process.poll() is None, self.errors()
        return any(epoch >= 1 for epoch, _ in partitions(self.run))

    def until_it_exchanges(self) -> None:
        """Wait until the run is well on its way."""
        until(self.exchanges, "the first exchanges")

    def errors(self) -> list[str]:
        """The lines on standard error."""
        return self._stderr.read_text().splitlines()

    def ended(self) -> int:
        """Wait for the end; the exit code. Nothing of the run may be left then."""
        code = self.process.wait(DEADLINE)
        until(lambda: not processes(str(self.run)), f"the end of {processes(str(self.run))}")
        return code

    def close(self) -> None:
        """Leave nothing behind, whatever the test found."""
        kill(str(self.run))
        self.process.kill()
        self.process.wait()
