"""One stream to the coordinator without a thread of its own: whoever waits for what it brings asks gRPC for it.

`grpc` itself offers a bidirectional call with a thread that reads and `grpc.aio` one with a thread that wakes an event
loop; either is as dear as the exchange. So this is made of what both are made of, `grpc._cython.cygrpc` (ADR 1).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc

from entangled import sending, unix_sockets
from entangled.credentials import Metadata
from entangled.errors import EntangledError, ProtocolError, UnreachableError
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb

METHOD = f"/{pb.DESCRIPTOR.services_by_name['Coordinator'].full_name}/Exchange".encode()

_raw: Any = cygrpc
_NO_FLAGS = 0
_WAIT_FOR_READY = _raw.InitialMetadataFlags.wait_for_ready | _raw.InitialMetadataFlags.wait_for_ready_explicitly_set
_BEGUN, _SENT, _CAME, _ENDED = "begun", "sent", "came", "ended"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Stream:
    """A call of `Exchange`, which always knows why it has ended. Its users agree on who calls; see `link.Link`.

    Who waits asks for the next message: while the coordinator is busy with what was sent, and not when its answer has
    just come. gRPC gives the status only to those who have read every message. A message is handed over when the one
    before it is on its way; what gathers meanwhile goes as a bundle, if it may.

    Args:
        channel: gRPC's.
        address: of the coordinator, for messages.
        metadata: of the call.
    """

    def __init__(self, channel: grpc.Channel, address: str, metadata: Metadata) -> None:
        self._address = address
        self.heard = self.said = 0
        """Messages that have come, and that were sent."""
        self.being_read = False
        """Whether somebody waits in `wait`."""
        self._why: EntangledError | None = None
        self._outgoing: deque[sending.FromPeer] = deque()
        self._large = False
        """Whether what is being sent is more than a socket surely takes at once."""
        self._wide = False
        """Whether room has been made for large messages."""
        self._pending = {_BEGUN, _CAME, _ENDED}
        self._asked = True
        """Whether gRPC has been asked for the next message; for the first it is with the call."""
        begun = _raw.SendInitialMetadataOperation(metadata, _WAIT_FOR_READY), _raw.ReceiveInitialMetadataOperation(0)
        ended = (_raw.ReceiveStatusOnClientOperation(_NO_FLAGS),)  # without which the call would not last
        came = (_raw.ReceiveMessageOperation(_NO_FLAGS),)
        opened: Any = channel
        self._call = opened._channel.segregated_call(
            _raw.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            METHOD,
            None,
            None,
            metadata,
            None,
            ((ended, _ENDED), (begun, _BEGUN), (came, _CAME)),
            None,
        )

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return not self._pending

    @property
    def sending(self) -> bool:
        """Whether a message is not yet on its way."""
        return _SENT in self._pending

    @property
    def needs_reading(self) -> bool:
        """Whether something that was sent goes out only while somebody waits in `wait`.

        gRPC writes what fits into the socket as soon as it is handed over.
        """
        return bool(self._outgoing) or (self._large and self.sending)

    @property
    def error(self) -> EntangledError | None:
        """Why it is over; None if the coordinator said OK."""
        return self._why

    def send(self, message: sending.FromPeer) -> None:
        """Have a message sent, after those before it. Onto a stream that has ended, it is dropped."""
        self.said += 1
        if self._outgoing or _SENT in self._pending:
            self._outgoing.append(message)
        else:
            self._hand_over(message)

    def wait(self) -> Any:
        """Wait for the next event, for `take`; one caller at a time. Meanwhile others may send and cancel.

        An exception, which is what a signal's handler raises, is the end of the stream.
        """
        try:
            if not self._asked and _CAME in self._pending:
                self._asked = True
                self._call.operate((_raw.ReceiveMessageOperation(_NO_FLAGS),), _CAME)
            return self._call.next_event()
        except BaseException:
            self._pending.clear()
            self._why = UnreachableError("its stream was left")
            raise

    def take(self, event: Any) -> pb.CoordinatorMessage | None:
        """Take in what `wait` gave; the message, if it is one."""
        tag = event.tag
        if tag == _CAME:
            self._asked = False
            return self._came(event.batch_operations[0].message())
        self._pending.discard(tag)
        if tag == _SENT:
            if self._outgoing:
                self._hand_over(sending.next_spoken(self._outgoing, sending.bundle_of_peers))
        elif tag == _ENDED:
            if not self._asked:
                self._pending.discard(_CAME)
            (status,) = event.batch_operations
            code = _CODES.get(status.code(), grpc.StatusCode.UNKNOWN)
            if self._why is None and code is not grpc.StatusCode.OK:
                self._why = from_status(code, status.details() or "", status.trailing_metadata() or ())
        return None

    def cancel(self, why: EntangledError) -> None:
        """End it now, without a goodbye; whoever waits hears that it has ended."""
        self._why = self._why or why
        self._outgoing.clear()
        if self._pending:
            self._call.cancel(_raw.StatusCode.cancelled, "")

    def _came(self, data: bytes | None) -> pb.CoordinatorMessage | None:
        if data is None:
            self._pending.discard(_CAME)
            return None  # the status says why
        try:
            message = pb.CoordinatorMessage.FromString(data)
        except DecodeError:
            self._pending.discard(_CAME)
            self.cancel(ProtocolError(f"what the coordinator at {self._address} sends is no message"))
            return None
        self.heard += 1
        return message

    def _hand_over(self, message: sending.FromPeer) -> None:
        if _ENDED not in self._pending:
            return
        data = message.SerializeToString()
        self._large = len(data) > sending.BUNDLE_BYTES
        if self._large and not self._wide:
            self._wide = True
            unix_sockets.widen(self._address)
        self._pending.add(_SENT)
        if not self._call.operate((_raw.SendMessageOperation(data, _NO_FLAGS),), _SENT):
            self._pending.discard(_SENT)  # gRPC has given its last event, which is about to be taken in
