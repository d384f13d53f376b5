"""A log stays readable whatever strangers send, and says what it left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entangled.log_limit import KINDS, OF_A_KIND, OF_A_LOGGER, WINDOW_SECONDS, LogLimit, printable


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[logging.Logger]:
    """A logger with two handlers, of which one writes to `log` in this test's folder."""
    logger = logging.getLogger("test of the limit")
    logger.propagate = False
    limit = LogLimit(clock)
    handlers = [logging.FileHandler(tmp_path / name) for name in ("log", "other")]
    for handler in handlers:
        handler.addFilter(limit)
        logger.addHandler(handler)
    yield logger
    for handler in handlers:
        logger.removeHandler(handler)
        handler.close()


def lines(folder: Path) -> list[str]:
    written = (folder / "log").read_text().splitlines()
    assert (folder / "other").read_text().splitlines() == written
    return written


def test_a_refusal_that_repeats_itself_is_written_a_few_times_and_then_counted(
    log: logging.Logger, tmp_path: Path, clock: Clock
) -> None:
    for number in range(1000):
        log.warning("refused %s: %s", f"ipv4:10.0.0.1:{number}", f"no such peer {number}")
    assert len(lines(tmp_path)) == OF_A_KIND
    clock.now = WINDOW_SECONDS + 1
    log.warning("refused %s: %s", "ipv4:10.0.0.1:5", "again")
    assert lines(tmp_path)[-1] == f"refused ipv4:10.0.0.1:5: again ({1000 - OF_A_KIND} more like this were left out)"


def test_another_host_and_another_kind_are_told_apart(log: logging.Logger, tmp_path: Path) -> None:
    for port in range(20):
        log.warning("refused %s: %s", f"ipv4:10.0.0.1:{port}", "x")
        log.warning("refused %s: %s", f"ipv4:10.0.0.2:{port}", "x")
        log.warning("refused %s: %s", f"ipv4:10.0.0.2:{port}", "y")
        log.error("something else")
    assert len(lines(tmp_path)) == 4  # each once


def test_many_hosts_together_have_a_limit_too(log: logging.Logger, tmp_path: Path) -> None:
    for number in range(5 * KINDS):
        log.warning("refused %s: %s", f"ipv4:10.0.{number // 256}.{number % 256}:1", "x")
    assert len(lines(tmp_path)) == OF_A_LOGGER


def test_what_is_no_warning_is_never_left_out(log: logging.Logger, tmp_path: Path) -> None:
    log.setLevel(logging.INFO)
    for number in range(200):
        log.info("epoch %d\nis done", number)
    assert len((tmp_path / "log").read_text().splitlines()) == 400


def test_nobody_forges_a_line(log: logging.Logger, tmp_path: Path) -> None:
    log.warning("peer %s", "a\n12:00:00 INFO all is well\r\x1b[2J")
    assert lines(tmp_path) == [r"peer a\n12:00:00 INFO all is well\r\x1b[2J"]


@given(st.text(max_size=300), st.integers(1, 100))
def test_anything_becomes_one_printable_line(text: str, longest: int) -> None:
    shown = printable(text, longest)
    assert shown.isprintable() or shown == ""
    assert len(shown) <= 10 * longest  # one character may take ten: \U0001f642
    if len(text) <= longest and text.isprintable():
        assert shown == text
