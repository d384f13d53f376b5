"""What one peer has said to a coordinator and heard from it, whatever carries the messages. No I/O in here."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from entangled import PROTOCOL_VERSION, codec, sending
from entangled.alignment import Fingerprint, Layout, Position, SampleIds, batch_digest, shared_batch_digest
from entangled.distribution import Probabilities
from entangled.errors import AlignmentError, PredictionError, ProtocolError
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from entangled.v1 import exchange_pb2 as pb


class Prepared(NamedTuple):
    """A prediction as it is sent, and what its answer must fit."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] # nobody looks for a value in it
    digest: bytes
    shape: tuple[int, ...]
    message: sending.FromPeer


class Conversation:
    """One peer's, from its first joining on, over as many streams as it takes.

    Args:
        peer: its name in the experiment.
        alone: whether no other peer speaks on its streams.
    """

    def __init__(self, peer: str, *, alone: bool = True) -> None:
        self._peer, self._alone = peer, alone
        self._instance = uuid.uuid4().hex
        self._fingerprint: Fingerprint | None = None
        self._encoding = codec.FLOAT32
        self.layout = Layout(samples=1, batch_size=1, epochs=1)
        self.welcome: pb.Welcome | None = None
        """On the present stream."""
        self.complete = self.durable = 0
        """Exchanges that the run had when this peer joined last, and that are on disk."""
        self.decided: int | None = None
        """The run's look-ahead; None before it is known."""
        self._pace: pb.Pace | None = None
        self._in_flight: dict[int, Prepared] = {}
        """By index, in the order in which they were sent."""
        self.answers: dict[int, SoftTarget] = {}
        """By index, those that nobody has asked for yet."""
        self._unsettled: deque[Prepared] = deque()
        """Answered predictions that the coordinator may still lose: sent again if it comes back without them."""

    # ---- what is said

    def begin(self, experiment: Experiment, fingerprint: Fingerprint) -> None:
        """This peer takes part in a run of `experiment`, on such data."""
        self._fingerprint = fingerprint
        self._encoding = codec.encoding(experiment.exchange.encoding)
        self.layout = experiment.layout(fingerprint.samples)

    def check_begun(self, what: str) -> None:
        """Raise ProtocolError if this peer has never joined, and so may not say `what`."""
        if self._fingerprint is None:
            raise ProtocolError("join before anything else", expected="join", got=what)

    def joining(self) -> pb.PeerMessage:
        """The first message on a stream, which a welcome is to follow."""
        self.check_begun("nothing")
        self.welcome = None
        return pb.PeerMessage(
            join=pb.Join(
                protocol_version=PROTOCOL_VERSION,
                peer=self._peer,
                instance=self._instance,
                origin=f"{socket.gethostname()} process {os.getpid()}",
                fingerprint=codec.encode_fingerprint(self._fingerprint) if self._fingerprint else None,
            )
        )

    def welcomed(self, welcome: pb.Welcome, run_id: str) -> Iterator[sending.FromPeer]:
        """What is to be said once more on a new stream, in order: what may be lost, and what is in flight.

        Raises:
            ProtocolError: the welcome is another run's.
        """
        if welcome.run_id != run_id:
            raise ProtocolError("another run has taken this one's place", expected=run_id, got=welcome.run_id)
        self.complete = welcome.complete
        for answered in self._unsettled:
            if answered.index >= self.complete:
                yield answered.message
        for waiting in self._in_flight.values():
            yield waiting.message
        if self._pace is not None and self.decided is None:
            yield pb.PeerMessage(pace=self._pace)

    def prepared(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> Prepared:
        """A prediction as `submitted` takes it. Changes nothing, so that any thread may do it."""
        digest = (batch_digest if self._alone else shared_batch_digest)(position, sample_ids)
        message = sending.write_prediction(position, digest, prediction, self._encoding, alone=self._alone)
        return Prepared(self.layout.index(position), digest, prediction.shape, message)

    def submitted(self, prepared: Prepared) -> None:
        """This prediction is in flight."""
        self._in_flight[prepared.index] = prepared

    def paced(self, step_seconds: float, round_trip_seconds: float) -> pb.PeerMessage:
        """What a step and a round trip take, which is told until the look-ahead is decided."""
        self._pace = pb.Pace(step_us=round(step_seconds * 1e6), round_trip_us=round(round_trip_seconds * 1e6))
        return pb.PeerMessage(pace=self._pace)

    def final(self, values: dict[str, float]) -> pb.PeerMessage:
        """The last scalars."""
        end = self.layout.position(self.layout.positions - 1)
        return pb.PeerMessage(metrics=pb.Metrics(epoch=end.epoch, step=end.step, values=values, final=True))

    # ---- what is heard

    @property
    def unsettled(self) -> int:
        """Every position before this index must be on disk before this peer may go; 0 if all are that it knows of."""
        return self._unsettled[-1].index + 1 if self._unsettled else 0

    def check_asked(self, index: int) -> None:
        """Raise ProtocolError if no answer for the position at `index` is here or to come; for any thread."""
        if index not in self._in_flight and index not in self.answers:
            position = self.layout.position(index)
            raise ProtocolError(f"no prediction was submitted for {position}, or its result has been given already")

    def heard(self, message: pb.CoordinatorMessage) -> None:
        """Take in what has come, but for answers."""
        match message.WhichOneof("kind"):
            case "durable":
                self.durable = message.durable.complete
                while self._unsettled and self._unsettled[0].index < self.durable:
                    self._unsettled.popleft()
            case "welcome":
                self.welcome = message.welcome
                if message.welcome.HasField("lookahead"):
                    self.decided = message.welcome.lookahead
            case "lookahead":
                self.decided = message.lookahead.batches
            case _:
                pass

    def answered(self, position: Position, digest: bytes, weight: float, probabilities: Probabilities) -> None:
        """Take in an answer: to what is in flight, or once more to what was answered and sent again.

        Args:
            position: of the batch.
            digest: of the batch.
            weight: λ in force.
            probabilities: `(rows, classes)` float32, the soft target.

        Raises:
            AlignmentError: it answers another batch.
            PredictionError: it is no soft target.
        """
        index = self.layout.index(position)
        asked = self._in_flight.get(index)
        if asked is None:
            if self._in_flight and index > max(self._in_flight):
                waited_for = self.layout.position(min(self._in_flight))
                raise AlignmentError(
                    "the coordinator answers another batch", expected=str(waited_for), got=str(position)
                )
            return
        if digest != asked.digest:
            raise AlignmentError(
                f"the coordinator answered {position} with another batch",
                expected=f"batch digest {asked.digest.hex()}",
                got=f"batch digest {digest.hex()}",
            )
        if probabilities.shape != asked.shape or not math.isfinite(weight):
            raise PredictionError(
                f"the coordinator's soft target for {position} is none",
                expected=f"{' × '.join(map(str, asked.shape))} probabilities, and a finite λ",
                got=f"{' × '.join(map(str, probabilities.shape))}, λ {weight}",
            )
        self.answers[index] = SoftTarget(probabilities, weight)  # first, or another thread would find it nowhere
        del self._in_flight[index]
        self._unsettled.append(asked)
