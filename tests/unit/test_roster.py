"""Who is missing, and since when; who is expected again."""

from __future__ import annotations

import pytest

from coordinator.roster import NEAR, Member, Roster
from tests.support import experiment

AFTER = 5.0


def roster(peers: str = "abc", least: int = 1, on_missing: str = "continue") -> Roster:
    exchange = {"missing_after": AFTER, "min_peers": least} if on_missing == "continue" else {}
    return Roster(experiment(tuple(peers), on_missing=on_missing, **exchange), 0.0)


def join(found: Roster, name: str, now: float, connection: int | None = None, instance: str = "") -> Member:
    member = found.members[name]
    number = "abc".index(name) if connection is None else connection
    found.connect(member, number, instance or name, "here", now)
    return member


def missing(found: Roster, now: float) -> list[str]:
    return [member.name for member in found.note_missing(now)]


def test_a_peer_is_missing_when_it_has_been_away_for_so_long() -> None:
    found = roster("ab")
    for name in "ab":
        join(found, name, 0.0)
    found.disconnect(1, 10.0)
    assert missing(found, 10.0 + AFTER) == []
    assert missing(found, 10.1 + AFTER) == ["b"]
    assert missing(found, 99.0) == []  # it is known to be
    assert found.members["b"].missing


def test_a_peer_that_is_connected_is_never_missing_however_slow_it_is() -> None:
    found = roster("ab")
    for name in "ab":
        join(found, name, 0.0)
    assert missing(found, 1e9) == []
    found.disconnect(1, 1e9)
    join(found, "b", 1e9 + AFTER - 1, connection=7)
    assert missing(found, 2e9) == []


def test_being_away_counts_from_the_last_time() -> None:
    found = roster("ab")
    for name in "ab":
        join(found, name, 0.0)
    found.disconnect(1, 0.0)
    join(found, "b", 4.0, connection=7)
    found.disconnect(7, 6.0)
    assert missing(found, 10.0) == []
    assert missing(found, 11.1) == ["b"]


def test_nobody_is_missed_while_nobody_is_there() -> None:
    """Neither before the first peer has come, nor while the coordinator itself is cut off from all of them."""
    found = roster("ab")
    assert missing(found, 1000.0) == []
    join(found, "a", 1000.0)
    assert missing(found, 1000.0 + AFTER) == []
    join(found, "b", 1001.0)
    for connection in (0, 1):
        found.disconnect(connection, 2000.0)
    assert missing(found, 3000.0) == []
    join(found, "b", 3000.0)
    assert missing(found, 3000.0 + AFTER) == []
    assert missing(found, 3000.1 + AFTER) == ["a"]


def test_a_peer_that_never_came_is_missing_too() -> None:
    found = roster("abc")
    join(found, "b", 7.0)
    assert missing(found, 7.1 + AFTER) == ["a", "c"]


def test_who_is_done_is_not_missing_and_still_misses_others() -> None:
    found = roster("ab")
    for name in "ab":
        join(found, name, 0.0)
    found.members["a"].done = True
    for connection in (0, 1):
        found.disconnect(connection, 10.0)
    assert missing(found, 10.1 + AFTER) == ["b"]


def test_where_the_others_wait_nobody_is_ever_missing() -> None:
    found = roster("ab", on_missing="wait")
    join(found, "a", 0.0)
    assert missing(found, 1e9) == []
    assert not found.give_up(found.members["a"])
    assert not found.suffice(["a"])
    assert found.suffice(["a", "b"])


@pytest.mark.parametrize("least", [1, 2, 3])
def test_an_exchange_needs_all_who_are_expected_and_enough(least: int) -> None:
    found = roster("abc", least)
    join(found, "a", 0.0)
    assert not found.suffice(["a", "b"])
    found.note_missing(99.0)
    assert found.suffice(["a"]) == (least == 1)
    assert found.suffice(["a", "b"]) == (least <= 2)
    assert found.suffice(["a", "b", "c"])
    assert not found.suffice(["b", "c"])
    assert not found.suffice([])
    waited = ["a (connected)"] if least == 1 else ["a (connected)", "b (not connected)", "c (not connected)"]
    assert found.waited_for([]) == waited


def returned(behind: int) -> tuple[Roster, Member]:
    """`b` is back, and so many positions behind a run that stands at 10,000."""
    found = roster("ab")
    join(found, "a", 0.0)
    found.note_missing(99.0)
    b = join(found, "b", 100.0)
    assert found.catch_up(b, 10_000 - behind, 10_000) == (behind <= NEAR)
    return found, b


def test_one_that_is_near_is_expected_at_once() -> None:
    found, b = returned(NEAR)
    assert b.expected
    assert not found.suffice(["a"])
    assert not found.catch_up(b, 10_000, 10_001)  # only once


def test_one_that_is_faster_is_expected_when_it_is_near() -> None:
    """Three positions to the others' one."""
    found, b = returned(9_000)
    index, complete = 1_000, 10_000
    while not found.catch_up(b, index, complete):
        assert not b.expected
        index, complete = index + 3, complete + 1
    assert NEAR - 3 < complete - index <= NEAR


@pytest.mark.parametrize("per_position", [1, 2])
def test_one_that_will_never_be_near_is_waited_for_once_it_has_covered_what_it_lacked(per_position: int) -> None:
    found, b = returned(1_000)
    index, complete = 9_000, 10_000
    while not found.catch_up(b, index, complete):
        index, complete = index + 1, complete + per_position
    assert index == 10_000
    assert complete == 10_000 + 1_000 * per_position


def test_the_count_begins_anew_with_each_return() -> None:
    found, b = returned(1_000)
    found.disconnect(1, 200.0)
    b = join(found, "b", 300.0)
    assert not found.catch_up(b, 9_500, 12_000)
    assert not found.catch_up(b, 11_000, 12_500)  # where the run stood at its first return is no goal any more
    assert found.catch_up(b, 12_000, 14_000)


def test_a_member_that_failed_is_missing_at_once_if_enough_are_left() -> None:
    found = roster("ab", least=1)
    a, b = (join(found, name, 0.0) for name in "ab")
    assert found.give_up(b)
    assert not found.give_up(a)
    assert [m.expected for m in (a, b)] == [True, False]


def test_after_a_restart_those_are_expected_who_took_part_in_the_last_exchange() -> None:
    found = roster("abc")
    found.restore(("a", "c"))
    assert [m.expected for m in found.members.values()] == [True, False, True]
    found.restore(())
    assert all(m.expected for m in found.members.values())
    waiting = roster("abc", on_missing="wait")
    waiting.restore(("a",))
    assert all(m.expected for m in waiting.members.values())
