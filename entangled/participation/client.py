"""The seam over gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from entangled import faults
from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.credentials import NOTHING, Credentials
from entangled.distribution import Probabilities
from entangled.errors import EntangledError, UnreachableError
from entangled.experiment import Experiment
from entangled.participation.conversation import Conversation
from entangled.participation.link import RETRY_SECONDS, ROUND_TRIP_SECONDS, Channel, Link
from entangled.participation.seam import Exchange, SoftTarget
from entangled.v1 import exchange_pb2 as pb

ROUND_TRIPS = 5
"""Measured; their median counts."""

LEAVE_SECONDS = 5.0
"""How long a goodbye may take."""


class CoordinatorClient(Exchange):
    """`seam.Exchange` over a link to a coordinator: of its own, or one that the peers of this process share.

    When the link's stream breaks, this peer joins again on the next one as soon as it waits for something, for as long
    as the experiment's patience; what is in flight, and what was answered but may have been lost with the coordinator,
    is sent again, in order. One thread uses it, but for `close`, which ends what that thread waits for.

    Args:
        address: `host:port` or `unix:PATH`.
        peer: this peer's name in the experiment.
        connect_seconds: how long to wait for a coordinator to be there at all.
        credentials: what this peer shows at the coordinator's door.
        link: that is shared, to the same coordinator. Whoever made it closes it.

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
        link: Link | None = None,
    ) -> None:
        self.peer = peer
        self.address = address
        self._own = link is None
        self._link = link or Link(address, connect_seconds, credentials)
        self._conversation = Conversation(peer, alone=not self._link.several)
        self._channel: Channel | None = None
        self._broken: EntangledError | None = None
        """Why the channel that was to be joined has ended."""
        self._error: EntangledError | None = None
        """Why nothing can go on."""
        self._joined = self._leaving = self._left = self._closed = False

    @property
    def experiment(self) -> Experiment:
        """The coordinator's."""
        return self._link.experiment

    @property
    def run_id(self) -> str:
        """Of the coordinator's run."""
        return self._link.run_id

    @property
    def decided(self) -> int | None:
        """The run's look-ahead; None before it is known."""
        return self._conversation.decided

    # ---- the seam

    def join(self, fingerprint: Fingerprint) -> int:
        """See `seam.Exchange.join`."""
        with self._link.lock:
            self._conversation.begin(self.experiment, fingerprint)
            self._error = None  # one that was told is over, if joining succeeds
        self._join_again()
        return self._conversation.complete

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """See `seam.Exchange.agree`."""
        return self._link.agree(self.peer, sample_ids)

    def order(self, epoch: int) -> SampleIds:
        """See `seam.Exchange.order`."""
        return self._link.order(epoch, self._conversation.layout.samples)

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """See `seam.Exchange.lookahead`; tells the coordinator what a step and a round trip take, and waits."""
        conversation = self._conversation
        if conversation.decided is None:
            round_trip = median(self._link.round_trip() for _ in range(ROUND_TRIPS))
            self._say(conversation.paced(step_seconds(), round_trip))
            self._until(lambda: conversation.decided is not None)
        return conversation.decided or 0

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """See `seam.Exchange.submit`."""
        conversation = self._conversation
        if not self._joined:
            conversation.check_begun("prediction")
        prepared = conversation.prepared(position, sample_ids, prediction)
        with self._link.lock:
            conversation.submitted(prepared)
            if self._joined and self._channel is not None:
                self._channel.send(prepared.message)
        if conversation.decided:
            self._link.push()  # what is asked for next may be here already, and this not yet on its way
        if self._error is not None:
            raise self._error

    def result(self, position: Position) -> SoftTarget:
        """See `seam.Exchange.result`."""
        answers, index = self._conversation.answers, self._conversation.layout.index(position)
        if index not in answers:
            self._conversation.check_asked(index)
            self._until(lambda: index in answers, position)
        return answers.pop(index)

    def settle(self, complete: int) -> None:
        """See `seam.Exchange.settle`."""
        self._until(lambda: self._conversation.durable >= complete)

    def forget(self, complete: int) -> None:
        """See `seam.Exchange.forget`."""
        self._say(pb.PeerMessage(settled=pb.Settled(complete=complete)))

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """See `seam.Exchange.report`."""
        metrics = pb.Metrics(epoch=position.epoch, step=position.step, values=values, epoch_end=epoch_end)
        self._say(pb.PeerMessage(metrics=metrics))

    def finish(self, values: dict[str, float]) -> None:
        """See `seam.Exchange.finish`."""
        if self._conversation.unsettled:
            self.settle(self._conversation.unsettled)
        give_up = time.monotonic() + self._link.patience
        while not self._left:
            self._until(lambda: self._joined)
            self._say(self._conversation.final(values))
            self._leave("")
            if not self._left and time.monotonic() > give_up:
                raise self._broken or self._silent()
        self.close()

    def fail(self, reason: str) -> None:
        """See `seam.Exchange.fail`."""
        if self._channel is not None:
            self._leave(reason)
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        with self._link.lock:
            self._closed = True
            channel, self._channel, self._joined = self._channel, None, False
            if channel is not None:
                channel.close()
        if self._own and not self._link.closed:
            self._link.close()

    # ---- what comes; see `link.Speaker`

    def arrived(self, message: pb.CoordinatorMessage) -> None:
        """See `link.Speaker`."""
        self._conversation.heard(message)

    def answered(self, position: Position, digest: bytes, weight: float, probabilities: Probabilities) -> None:
        """See `link.Speaker`."""
        try:
            self._conversation.answered(position, digest, weight, probabilities)
        except EntangledError as error:
            self._error = error

    def ended(self, error: EntangledError | None) -> None:
        """See `link.Speaker`."""
        self._channel, self._joined = None, False
        if error is None and self._leaving:
            self._left = True
            return
        self._broken = error or UnreachableError("the coordinator has ended the stream")
        if not isinstance(self._broken, UnreachableError):
            self._error = self._broken

    # ---- what goes, and waiting

    def _say(self, message: pb.PeerMessage) -> None:
        """Send if there is somebody who listens; else it is told, if it matters, at the next joining."""
        self._conversation.check_begun(str(message.WhichOneof("kind")))
        with self._link.lock:
            if self._joined and self._channel is not None:
                self._channel.send(message)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _until(self, done: Callable[[], bool], answered: Position | None = None) -> None:
        """Wait until `done`, which what comes may change, and join again where that is needed.

        Args:
            done: is called with the link's lock held.
            answered: for the message, the position whose answer is waited for.

        Raises:
            UnreachableError: patience is at its end.
        """
        if not self._joined:
            self._conversation.check_begun("nothing")
        give_up = time.monotonic() + self._link.patience
        while True:
            self._link.wait(lambda: done() or self._channel is None or self._error is not None, give_up)
            if done():
                return
            self._raise()
            if self._closed or self._left:
                raise UnreachableError("this peer has left")
            if time.monotonic() >= give_up:
                raise self._silent(answered)
            if self._channel is None:
                self._join_again()

    def _silent(self, answered: Position | None = None) -> UnreachableError:
        what = f" {answered}" if answered is not None else ""
        gone = f"the coordinator at {self.address} does not answer{what} any more"
        return UnreachableError(f"{gone}; go on by the same command when it does")

    def _join_again(self) -> None:
        """Join on a new channel, for as long as patience lasts."""
        give_up = time.monotonic() + self._link.patience
        while True:
            try:
                return self._join()
            except UnreachableError as error:
                if self._closed:
                    raise
                with self._link.lock:
                    if self._channel is not None:
                        self._channel.close()
                if time.monotonic() > give_up:
                    self._error = error
                    raise
                time.sleep(RETRY_SECONDS)
            except EntangledError as error:
                self._error = error
                raise

    def _join(self) -> None:
        link, conversation = self._link, self._conversation
        with link.lock:
            if self._closed:
                raise UnreachableError("this peer has left")
            self._channel = channel = link.speak(self)
            self._broken, self._joined, self._leaving = None, False, False
            channel.send(conversation.joining())
        give_up = time.monotonic() + ROUND_TRIP_SECONDS
        link.wait(lambda: conversation.welcome is not None or self._broken is not None, give_up)
        with link.lock:
            if conversation.welcome is None or self._broken is not None:
                raise self._broken or UnreachableError(f"the coordinator at {self.address} does not answer")
            repeated = list(conversation.welcomed(conversation.welcome, self.run_id))
            faults.point(self.peer, "after welcome")
            for message in repeated:
                channel.send(message)
            self._joined = channel.joined = True

    def _leave(self, reason: str) -> None:
        """Say goodbye and wait until the coordinator has heard it, which is when it ends the channel."""
        with self._link.lock:
            self._broken, self._leaving = None, True
        self._say(pb.PeerMessage(leave=pb.Leave(failure=reason)))
        give_up = time.monotonic() + LEAVE_SECONDS
        self._link.wait(lambda: self._left or self._broken is not None, give_up)
