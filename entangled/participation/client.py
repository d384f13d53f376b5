"""The seam over gRPC, blocking: another thread runs the event loop, so that what comes is taken in meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Callable

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.credentials import NOTHING, Credentials
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, UnreachableError
from entangled.experiment import Experiment
from entangled.participation.connection import Connection, Outcome, Prepared
from entangled.participation.line import Line
from entangled.participation.seam import Exchange, SoftTarget


class CoordinatorClient(Exchange):
    """`seam.Exchange` over a line to a coordinator: of its own, or one that the peers of this process share.

    Args:
        address: `host:port` or `unix:PATH`.
        peer: this peer's name in the experiment.
        connect_seconds: how long to wait for a coordinator to be there at all.
        credentials: what this peer shows at the coordinator's door.
        line: that is shared, to the same coordinator. Whoever made it closes it.

    Raises:
        UnreachableError: nobody answers at `address`.
        ProtocolError: the coordinator is of another version.
        MembershipError: the coordinator does not let these credentials in.
    """

    def __init__(
        self,
        address: str,
        peer: str,
        connect_seconds: float = 60.0,
        credentials: Credentials = NOTHING,
        line: Line | None = None,
    ) -> None:
        self.peer = peer
        self.address = address
        self._own = line is None
        self._line = line or Line(address, connect_seconds, credentials)
        self._told: dict[int, queue.SimpleQueue[Outcome]] = {}
        """Where the answers to what was submitted come, by index."""
        self._connection = Connection(self._line.link, peer)

    @property
    def experiment(self) -> Experiment:
        """The coordinator's."""
        return self._line.link.experiment

    @property
    def run_id(self) -> str:
        """Of the coordinator's run."""
        return self._line.link.run_id

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        self._told.clear()  # an error that was told is over, if joining succeeds
        return self._line.run(self._connection.join(fingerprint))

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        return self._line.run(self._connection.agree(sample_ids))

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return self._line.run(self._connection.order(epoch))

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """See `seam.Exchange.lookahead`."""
        if self._connection.decided is None:
            self._line.run(self._connection.decide(step_seconds()))
        return self._connection.decided or 0

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        prepared = self._connection.prepared(position, sample_ids, prediction)
        told = self._told[prepared.index] = queue.SimpleQueue()
        self._line.soon(self._post_and_ask, position, prepared, told.put)

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        told = self._told.pop(self._connection.index(position), None)
        if told is None:
            told = queue.SimpleQueue()
            self._line.soon(self._connection.ask, position, told.put)
        try:
            outcome = told.get(timeout=self._line.link.patience)
        except queue.Empty:
            raise UnreachableError(f"the coordinator at {self.address} does not answer {position} any more") from None
        if isinstance(outcome, EntangledError):
            raise outcome
        return outcome

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        self._line.run(self._connection.settle(complete))

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        self._line.run(self._connection.forget(complete))

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        self._line.run(self._connection.report(position, values, epoch_end=epoch_end))

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        self._line.run(self._connection.finish(values))
        self.close()

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        if not self._line.closed:
            self._line.run(self._connection.fail(reason))
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        if not self._line.closed:
            self._line.run(self._connection.close())
        if self._own:
            self._line.close()

    def _post_and_ask(self, position: Position, prepared: Prepared, tell: Callable[[Outcome], None]) -> None:
        """One turn of the loop for both: to wake its thread costs as much as what it then does."""
        self._connection.post(prepared)
        self._connection.ask(position, tell)
