"""Keeps a log readable whatever strangers send: a few lines of a kind from one source, each on one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0
"""After so long, a kind of line may be written again."""

OF_A_KIND = 5
"""Different lines of one kind, from one source, in a window; the same line is written once."""

OF_A_LOGGER = 60
"""Warnings and errors of one logger in a window, whatever their kind and source."""

KINDS = 1024
"""Kinds that are told apart; beyond, all are one."""

LONGEST = 1000
"""Characters of a line; a traceback has its own."""


@dataclass
class _Seen:
    since: float
    written: int = 0
    left_out: int = 0
    lines: set[int] = field(default_factory=set[int])


class LogLimit(logging.Filter):
    """Leaves out warnings and errors that repeat themselves, and says how many; cuts them, and escapes line breaks.

    Two lines are of one kind if they are of one logger and message template, and name the same host in their first
    argument; what else they say may be the sender's to choose. One that differs in nothing but the port is the same.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str, str], _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.levelno < logging.WARNING:
            return True
        if not hasattr(record, "is_written"):  # else another handler has asked already
            record.is_written = self._is_written(record)
        return bool(record.is_written)  # pyright: ignore[reportAttributeAccessIssue]

    def _is_written(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        source, rest = _source(record)
        kind = self._entry(record.name, str(record.msg), source, now)
        logger = self._entry(record.name, "", "", now)
        if rest in kind.lines or kind.written >= OF_A_KIND or logger.written >= OF_A_LOGGER:
            kind.left_out += 1
            return False
        kind.written += 1
        kind.lines.add(rest)
        logger.written += 1
        record.msg, record.args = printable(record.getMessage()), ()
        if kind.left_out:
            record.msg += f" ({kind.left_out} more like this were left out)"
            kind.left_out = 0
        return True

    def _entry(self, logger: str, template: str, source: str, now: float) -> _Seen:
        key = (logger, template, source)
        if key not in self._seen and len(self._seen) >= KINDS:
            self._seen = {k: seen for k, seen in self._seen.items() if now - seen.since <= WINDOW_SECONDS}
            if len(self._seen) >= KINDS:
                key = ("", "", "")
        seen = self._seen.setdefault(key, _Seen(now))
        if now - seen.since > WINDOW_SECONDS:
            seen.since, seen.written = now, 0
            seen.lines.clear()
        return seen


def _source(record: logging.LogRecord) -> tuple[str, int]:
    """The host in gRPC's `ipv4:HOST:PORT`, which stands first in what is logged about a caller; a hash of the rest."""
    first, *rest = record.args if isinstance(record.args, tuple) and record.args else [""]
    return (first.rpartition(":")[0] if isinstance(first, str) else ""), hash(str(rest))


def printable(text: str, longest: int = LONGEST) -> str:
    r"""A text of anybody's on one line: cut, and with what is no printable character escaped.

    >>> printable("a\nb\x1b[31m λ"), printable("abcdef", 4)
    ('a\\nb\\x1b[31m λ', 'abc…')
    """
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
