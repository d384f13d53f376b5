"""The seam over gRPC. The caller's own thread runs the event loop while it waits: no hand-over on the hot path."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import Probabilities
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from entangled.participation.connection import Connection
from entangled.participation.seam import Exchange, SoftTarget

T = TypeVar("T")


class CoordinatorClient(Exchange):
    """`seam.Exchange` over one stream to a coordinator: a `Connection` and a loop to run it on.

    Args:
        address: `host:port` or `unix:PATH`.
        peer: this peer's name in the experiment.
        connect_seconds: how long to wait for a coordinator to be there at all.

    Raises:
        UnreachableError: nobody answers at `address`.
        ProtocolError: the coordinator is of another version.
    """

    def __init__(self, address: str, peer: str, connect_seconds: float = 60.0) -> None:
        self.peer = peer
        self.address = address
        self._loop = uvloop.new_event_loop()
        self._connection = Connection(address, peer)
        try:
            self._run(self._connection.open(connect_seconds))
        except EntangledError:
            self.close()
            raise

    @property
    def experiment(self) -> Experiment:
        """The coordinator's."""
        return self._connection.experiment

    @property
    def run_id(self) -> str:
        """Of the coordinator's run."""
        return self._connection.run_id

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        return self._run(self._connection.join(fingerprint))

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return self._run(self._connection.order(epoch))

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        self._run(self._connection.submit(position, sample_ids, prediction))

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        return self._run(self._connection.result(position))

    def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """See `seam.Exchange.exchange`."""
        return self._run(self._connection.exchange(position, sample_ids, prediction))

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        self._run(self._connection.settle(complete))

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        self._run(self._connection.forget(complete))

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        self._run(self._connection.report(position, values, epoch_end=epoch_end))

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        self._run(self._connection.finish(values))
        self.close()

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        if not self._loop.is_closed():
            self._run(self._connection.fail(reason))
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        if not self._loop.is_closed():
            self._run(self._connection.close())
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)
