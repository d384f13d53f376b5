"""Coordinators and peers as what they are, processes of their own; no model is trained in them.

They are forked from a server that has imported everything, so that each is there in some hundredths of a second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coordinator.doors import Lock
from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.credentials import NOTHING, Credentials
from entangled.distribution import Probabilities
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from entangled.participation.seam import Exchange, SoftTarget
from tests.contract.raw import RawPeer, channel_to

DEADLINE = 60.0
"""Seconds after which what hangs fails; nothing waits for so long when all is well."""

FORKS = multiprocessing.get_context("forkserver")
# pandas, because pyarrow imports it at its first array, where there is one; it takes a second.
FORKS.set_forkserver_preload(["__main__", "coordinator.server", "entangled.participation.client", "pandas"])


class LiveCoordinator:
    """A coordinator's process.

    `limit` lowers the size of the largest message that it takes, `lock` is what callers need, `address` where it
    listens: on a socket in `folder`, unless something else is given. `beat` is how often it lets time pass, and speaks
    where it has nothing to say, in seconds. `disk` is how large its files may become, in bytes: then its disk is full.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        limit: int | None = None,
        lock: Lock | None = None,
        address: str = "",
        beat: float | None = None,
        disk: int | None = None,
    ) -> None:
        self.experiment = experiment
        self.run = folder / "run"
        self.address = address or f"unix:{folder}/coordinator.sock"
        self._closing: list[Callable[[], None]] = []
        self._outcome, theirs = FORKS.Pipe(duplex=False)
        arguments = theirs, experiment, self.address, self.run, limit, lock, beat, disk
        self._process = FORKS.Process(target=_coordinate, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def peer(self, name: str, shown: Credentials = NOTHING) -> RemotePeer:
        """A new peer process."""
        return self.peer_at(self.address, name, shown)

    def peer_at(self, address: str, name: str, shown: Credentials = NOTHING, beat: float | None = None) -> RemotePeer:
        """A new peer process that finds this coordinator at another address."""
        peer = RemotePeer(address, name, shown, beat)
        self._closing.append(peer.close)
        return peer

    def raw(self, shown: Credentials = NOTHING) -> RawPeer:
        """A new stream to speak on by hand."""
        raw = RawPeer(self.address, DEADLINE, shown)
        self._closing.append(raw.close)
        return raw

    def channel(self, shown: Credentials = NOTHING) -> Any:
        """A gRPC channel for everything else."""
        channel = channel_to(self.address, shown)
        self._closing.append(channel.close)
        return channel

    @property
    def pid(self) -> int:
        """The coordinator's process."""
        return self._process.pid or 0

    def memory_mb(self) -> float:
        """How large the coordinator's process has been at most; 0 where nobody says."""
        status = Path(f"/proc/{self.pid}/status")
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else 0.0

    def ended(self) -> EntangledError | None:
        """Wait for the end of the run; why it failed, or None."""
        assert self._outcome.poll(DEADLINE), "the run has not ended"
        return self._outcome.recv()

    def close(self) -> None:
        """End whatever is left."""
        for close in self._closing:
            close()
        self._process.kill()
        self._process.join()
        self._process.close()
        self._outcome.close()


class RemotePeer(Exchange):
    """`CoordinatorClient` in a process of its own."""

    def __init__(self, address: str, name: str, shown: Credentials = NOTHING, beat: float | None = None) -> None:
        self._pipe, theirs = FORKS.Pipe()
        self._process = FORKS.Process(target=_follow, args=(theirs, address, name, shown, beat), daemon=True)
        self._process.start()
        theirs.close()

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        return self._ask("join", fingerprint)

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        return self._ask("agree", sample_ids)

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return self._ask("order", epoch)

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """See `seam.Exchange.lookahead`."""
        return self._ask("lookahead", step_seconds)

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        self._ask("submit", position, sample_ids, prediction)

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        return self._ask("result", position)

    def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `seam.Exchange.exchange`."""
        return self._ask("exchange", position, sample_ids, prediction)

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        self._ask("settle", complete)

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        self._ask("forget", complete)

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        self._ask("report", position, values, epoch_end=epoch_end)

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        self._ask("finish", values)

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        self._ask("fail", reason)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        self._pipe.send((method, arguments, keywords))
        assert self._pipe.poll(DEADLINE), f"{method} has not returned"
        well, value = self._pipe.recv()
        if not well:
            raise value
        return value


def _coordinate(
    outcome: Connection,
    experiment: Experiment,
    address: str,
    run: Path,
    limit: int | None,
    lock: Lock | None,
    beat: float | None,
    disk: int | None,
) -> None:
    from coordinator import server, service
    from entangled import process

    process.log_to(run / "coordinator.log")
    if disk is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    if beat is not None:
        service.TICK_SECONDS = service.HEARTBEAT_SECONDS = beat
    if limit is not None:
        server.limits = lambda *_: [("grpc.max_receive_message_length", limit)]
    try:
        server.serve(experiment, address, run, lock)
        outcome.send(None)
    except EntangledError as error:
        outcome.send(error)


def _follow(pipe: Connection, address: str, name: str, shown: Credentials, beat: float | None) -> None:
    from entangled.participation import link
    from entangled.participation.client import CoordinatorClient

    if beat is not None:
        link.TEND_SECONDS = beat

    client = CoordinatorClient(address, name, DEADLINE, shown)
    with contextlib.suppress(EOFError):  # the test is over
        while True:
            method, arguments, keywords = pipe.recv()
            try:
                pipe.send((True, getattr(client, method)(*arguments, **keywords)))
            except Exception as error:
                pipe.send((False, error))
