"""Errors across the wire: every class of the tree comes out as it went in."""

from __future__ import annotations

import grpc
import pytest

from entangled import errors, status
from entangled.errors import EntangledError

CLASSES = sorted(errors.by_name().values(), key=lambda c: c.__name__)


def test_the_tree_is_known_whole() -> None:
    assert {c.__name__ for c in CLASSES} == {n for n in dir(errors) if n.endswith("Error") and n[0].isupper()}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("expected", "got"), [("", ""), ("≥ 0", "-1"), ("a\nb", "")])
def test_every_error_survives_the_round_trip(kind: type[EntangledError], expected: str, got: str) -> None:
    error = kind("row 3 of „x“ is wrong", expected=expected, got=got)
    code, details, trailing = status.to_status(error)
    assert code is not grpc.StatusCode.OK
    assert details == str(error)
    back = status.from_status(code, details, trailing)
    assert type(back) is kind
    assert (back.message, back.expected, back.got) == (error.message, expected, got)


@pytest.mark.parametrize("kind", [c for c in CLASSES if issubclass(c, errors.RefusedError)])
def test_a_refusal_is_never_a_status_that_clients_retry(kind: type[EntangledError]) -> None:
    code, _, _ = status.to_status(kind("no"))
    assert code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_subclass_has_its_parents_status() -> None:
    class Special(errors.AlignmentError):
        pass

    assert status.to_status(Special("x"))[0] is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("letter", ["x", "ü", "…", "🙂"])
def test_long_texts_are_cut_to_what_metadata_can_carry(letter: str) -> None:
    error = errors.PredictionError(letter * 100_000, expected=letter * 100_000, got=letter * 100_000)
    code, details, trailing = status.to_status(error)
    back = status.from_status(code, details, trailing)
    assert type(back) is errors.PredictionError
    assert back.message.startswith(letter * 100)
    assert back.message.endswith(" …")
    encoded = 3 * len(details.encode()) + sum(len(value) * 4 // 3 for _, value in trailing)
    assert encoded < 8 * 1024


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnreachableError),
        (grpc.StatusCode.UNKNOWN, errors.UnreachableError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.UnreachableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ProtocolError),
    ],
)
def test_a_status_that_the_coordinator_did_not_choose_says_what_grpc_said(
    code: grpc.StatusCode, kind: type[EntangledError]
) -> None:
    error = status.from_status(code, "socket closed", (("other-key", "x"), ("other-bin", b"x")))
    assert type(error) is kind
    assert "socket closed" in str(error)


def test_an_error_of_a_newer_coordinator_is_still_a_refusal() -> None:
    refusal = status.pb.Refusal(kind="NewError", message="something new").SerializeToString()
    error = status.from_status(grpc.StatusCode.ABORTED, "", ((status.REFUSAL_KEY, refusal),))
    assert type(error) is errors.RefusedError
    assert error.message == "something new"
