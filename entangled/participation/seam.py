"""The seam: what a training loop needs from the outside world."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from entangled.alignment import Fingerprint, Position, SampleIds
from entangled.distribution import Probabilities


class SoftTarget(NamedTuple):
    """What a peer gets back for a batch: the others' combined probabilities, and λ."""

    probabilities: Probabilities
    """`(rows, classes)` float32."""
    weight: float
    """λ in force."""


class Exchange(Protocol):
    """One peer's way to the others. Blocking; one thread uses it. Implementations inherit from it."""

    def join(self, fingerprint: Fingerprint) -> int:
        """Become a peer of the run; RefusedError if the data set or the name is not welcome.

        Returns:
            How many exchanges, from the first, are complete: a peer that comes back catches up on them.
        """
        ...

    def agree(self, sample_ids: SampleIds) -> SampleIds:
        """Before joining, where the peers have different features of the same samples: which samples all have.

        Args:
            sample_ids: of the samples that this peer has, in any order, each once.

        Returns:
            Those that all peers have, ascending.

        Raises:
            AlignmentError: there are none, or this peer lacks some that were agreed on before.
            PatienceError: somebody was waited for too long.
        """
        ...

    def order(self, epoch: int) -> SampleIds:
        """The sample order of an epoch, int64."""
        ...

    def lookahead(self, step_seconds: Callable[[], float]) -> int:
        """How many batches ahead predictions are published; to be asked after `join`, before the first `submit`.

        Whoever publishes no prediction ahead, whatever this says, takes part all the same, and learns from what the
        others published ahead.

        Args:
            step_seconds: measures what a training step takes; called where the coordinator decides by it.
        """
        ...

    def submit(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> None:
        """Publish the prediction for a batch; does not wait for anybody else's.

        What is published and not asked for with `result` is in flight. Several may be, in the order of their positions;
        how many, the coordinator says.

        Args:
            position: of the batch.
            sample_ids: of the batch, in its order.
            prediction: `(rows, classes)` float32.

        Raises:
            RefusedError: the coordinator does not take the prediction; may also be raised by what is called next.
            RunFailedError: the run is over for everybody.
        """
        ...

    def result(self, position: Position) -> SoftTarget:
        """Wait until everybody's prediction for a batch in flight is in.

        Raises:
            RefusedError: the coordinator does not take the prediction, or none is in flight for this position.
            PatienceError: somebody was waited for too long.
            RunFailedError: the run is over for everybody.
        """
        ...

    def exchange(self, position: Position, sample_ids: SampleIds, prediction: Probabilities) -> SoftTarget:
        """`submit`, then `result`: publish the prediction for a batch and wait for everybody else's."""
        self.submit(position, sample_ids, prediction)
        return self.result(position)

    def settle(self, complete: int) -> None:
        """Wait until the exchanges of every position before index `complete` are on disk.

        From then on they need not be repeated, so that a checkpoint may forget them.
        """
        ...

    def forget(self, complete: int) -> None:
        """Tell that this peer will never again ask for positions before index `complete`, for it has a checkpoint."""
        ...

    def report(self, position: Position, values: dict[str, float], *, epoch_end: bool = False) -> None:
        """Tell how it is going: scalars by name."""
        ...

    def finish(self, values: dict[str, float]) -> None:
        """Tell the final scalars, and leave."""
        ...

    def fail(self, reason: str) -> None:
        """Leave because this peer cannot go on, which ends the run for everybody. Never raises."""
        ...

    def close(self) -> None:
        """Drop the connection without a word: the others wait for this peer to come back."""
