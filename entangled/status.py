"""The error tree's mapping to gRPC status, for both sides: one table."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf.message import DecodeError

from entangled import errors
from entangled.errors import EntangledError
from entangled.v1 import exchange_pb2 as pb

REFUSAL_KEY = "entangled-refusal-bin"
"""Trailing metadata that carries the error's fields."""

STATUS: dict[type[EntangledError], grpc.StatusCode] = {
    errors.AlignmentError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PredictionError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MembershipError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ProtocolError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnreachableError: grpc.StatusCode.UNAVAILABLE,
    errors.PatienceError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.RunFailedError: grpc.StatusCode.ABORTED,
    errors.LogError: grpc.StatusCode.DATA_LOSS,
}

MESSAGE_BYTES, VALUE_BYTES = 600, 300
"""Longer texts are cut: gRPC drops a status whose metadata outgrows 8 KiB, and with it why something was refused."""


def to_status(error: EntangledError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """The status code, details and trailing metadata that carry `error` to the other side."""
    refusal = to_refusal(error)
    details = str(EntangledError(refusal.message, expected=refusal.expected, got=refusal.got))
    code = next((STATUS[c] for c in type(error).__mro__ if c in STATUS), grpc.StatusCode.UNKNOWN)
    return code, details, ((REFUSAL_KEY, refusal.SerializeToString()),)


def to_refusal(error: EntangledError) -> pb.Refusal:
    """The message that carries `error`'s fields."""
    return pb.Refusal(
        kind=type(error).__name__,
        message=_brief(error.message, MESSAGE_BYTES),
        expected=_brief(error.expected, VALUE_BYTES),
        got=_brief(error.got, VALUE_BYTES),
    )


def from_refusal(refusal: pb.Refusal) -> EntangledError:
    """The error whose fields a message carries."""
    kind = errors.by_name().get(refusal.kind, errors.RefusedError)
    return kind(refusal.message, expected=refusal.expected, got=refusal.got)


def _brief(text: str, size: int) -> str:
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= size else data[: size - 4].decode(errors="ignore") + " …"


def from_status(code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, str | bytes]]) -> EntangledError:
    """The error that a status stands for; UnreachableError for every status that the coordinator did not choose."""
    for key, value in trailing:
        if key == REFUSAL_KEY and isinstance(value, bytes):
            try:
                refusal = pb.Refusal.FromString(value)
            except DecodeError:
                break
            return from_refusal(refusal)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ProtocolError(f"a message is too large: {details}")
    return errors.UnreachableError(f"{code.name}: {details}")
