"""The one error tree.

    EntangledError
     ├─ ExperimentError      the experiment file is wrong
     ├─ DataError            a data set or model cannot be used
     ├─ LogError             the exchange log is damaged or does not belong here
     ├─ CredentialsError     certificates or tokens cannot be used
     ├─ RefusedError         the coordinator refuses a peer's message
     │   ├─ AlignmentError     … it is about other samples than the coordinator's
     │   ├─ PredictionError    … it is not a probability distribution of the expected shape
     │   ├─ MembershipError    … the sender is no peer of this experiment, or is already here
     │   ├─ ProtocolError      … the message does not belong here: order, version, unknown fields, size
     ├─ UnreachableError     the coordinator cannot be reached
     ├─ PatienceError        somebody was waited for longer than the experiment's patience
     └─ RunFailedError       the run ended for everybody; says because of whom

Errors carry fields where somebody may want to act on them: `expected` and `got` hold what was compared, as text.
"""

from __future__ import annotations


class EntangledError(Exception):
    """Base of every error this system raises on purpose.

    Args:
        message: one line for a person: what, where, and what to do.
        expected: what should have been, or empty.
        got: what was there instead, or empty.
    """

    def __init__(self, message: str, *, expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        if self.expected or self.got:
            return f"{self.message} (expected {self.expected or 'nothing'}; got {self.got or 'nothing'})"
        return self.message


class ExperimentError(EntangledError):
    """The experiment file is wrong."""


class DataError(EntangledError):
    """A data set or a model cannot be used."""


class LogError(EntangledError):
    """The exchange log is damaged, or belongs to another run."""


class FormatError(LogError):
    """The exchange log was written by a version whose format is another."""


class CredentialsError(EntangledError):
    """Certificates or tokens cannot be used. No such message holds a secret."""


class RefusedError(EntangledError):
    """The coordinator refuses a peer's message."""


class AlignmentError(RefusedError):
    """A message is about other samples than the coordinator's own batch (guarantee 1)."""


class PredictionError(RefusedError):
    """A prediction is not a set of probability distributions of the expected shape (guarantee 4)."""


class MembershipError(RefusedError):
    """The sender is not a peer of this experiment, or another process already speaks under its name."""


class ProtocolError(RefusedError):
    """A message that does not belong here: out of order, of another version, with unknown fields, too large."""


class UnreachableError(EntangledError):
    """The coordinator cannot be reached."""


class PatienceError(EntangledError):
    """Somebody was waited for longer than the experiment's patience (guarantee 7)."""


class RunFailedError(EntangledError):
    """The run ended for everybody before it was done."""


def by_name() -> dict[str, type[EntangledError]]:
    """Every class of the tree by its name, so that an error keeps its class across the wire."""
    found: dict[str, type[EntangledError]] = {}
    open_classes: list[type[EntangledError]] = [EntangledError]
    while open_classes:
        cls = open_classes.pop()
        found[cls.__name__] = cls
        open_classes.extend(cls.__subclasses__())
    return found
