"""The coordinator's doors: where it may listen, whom it lets in, and under which name they may speak."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from coordinator.lobby import Lobby, Room
from coordinator.serving import Server, Then
from entangled import addresses, codec
from entangled.credentials import SCHEME, TOKEN_KEY
from entangled.errors import CredentialsError, EntangledError, MembershipError, ProtocolError
from entangled.holders import OPERATOR
from entangled.status import to_status
from entangled.tokens import Digests, read_digests
from entangled.v1 import exchange_pb2 as pb

if TYPE_CHECKING:
    from entangled.certificates import Certificates

log = logging.getLogger(__name__)

MOST_CHARACTERS = 128
"""Of what a process calls itself."""

SERVICE = f"/{pb.DESCRIPTOR.services_by_name['Coordinator'].full_name}/"


@dataclass(frozen=True)
class Lock:
    """What a caller needs to get in.

    With certificates alone, callers show one of the same authority; its common name is who they are. With tokens, they
    are who their token says; certificates then only encrypt, and callers need none of their own. With neither, whoever
    reaches the coordinator gets in as whoever they say.
    """

    certificates: Certificates | None = None
    tokens: Digests | None = None

    @property
    def is_open(self) -> bool:
        """Whether anybody gets in."""
        return self.certificates is None and self.tokens is None

    def listen(self, server: Server, address: str) -> None:
        """Have `server` listen at `address`; RuntimeError if it cannot."""
        own = self.certificates
        if own is None:
            server.add_insecure_port(address)
            return
        if own.key is None or own.certificate is None:
            raise CredentialsError(f"{own.folder} has no cert.pem and key.pem, which a coordinator needs")
        pair = [(own.key, own.certificate)]
        if self.tokens is None:
            secure = grpc.ssl_server_credentials(pair, own.authority, require_client_auth=True)
        else:
            secure = grpc.ssl_server_credentials(pair)
        server.add_secure_port(address, secure)

    def caller(self, metadata: Mapping[str, str], auth: Mapping[str, Any]) -> str | None:
        """Who calls; None where that is not asked.

        Args:
            metadata: the call's.
            auth: gRPC's auth context.

        Raises:
            MembershipError: the token is missing or nobody's, or the certificate is.
        """
        if self.tokens is not None:
            shown = metadata.get(TOKEN_KEY, "")
            if not shown.startswith(SCHEME):
                raise MembershipError("this coordinator wants a token (--token-file)", got="no token")
            name = self.tokens.name(shown.removeprefix(SCHEME))
            if name is None:
                raise MembershipError("this token is nobody's in this run", got="another token")
            return name
        if self.certificates is not None:
            names = [bytes(name).decode(errors="replace") for name in auth.get("x509_common_name", ())]
            if not names:
                raise MembershipError("this coordinator wants a certificate that names its holder", got="no name")
            return names[0]
        return None


def check_listen(address: str, lock: Lock, *, insecure: bool) -> None:
    """Refuse to listen where strangers could get in, and warn about what is less than safe.

    Args:
        address: where the coordinator is to listen.
        lock: what a caller needs to get in.
        insecure: the user says that whoever reaches it may get in.

    Raises:
        CredentialsError: others can reach `address` and nothing keeps them out.
    """
    if addresses.is_local(address) or (lock.certificates is not None):
        return
    if not lock.is_open:
        log.warning("nothing encrypts what goes to and from %s: on a network of others, give --certs, too", address)
        return
    if not insecure:
        raise CredentialsError(
            f"other hosts can reach {address}, and whoever does could join or watch: give --certs or --tokens "
            "(docs/security.md), or --insecure to let them"
        )
    log.warning("--insecure: whoever reaches %s can join, watch, and end the run, and nothing is encrypted", address)


def load(certs: Path | None, tokens: Path | None) -> Lock:
    """Read a coordinator's certificates and tokens; CredentialsError if they are not what they should be."""
    kept = read_digests(tokens) if tokens else None
    if certs is None:
        return Lock(tokens=kept)
    from entangled import certificates  # with its library, which no other coordinator needs

    return Lock(certificates.read(certs), kept)


class Doorkeeper:
    """Lets into the coordinator's methods whom the lock lets in, and not too many at once; health checking stays open.

    Args:
        lock: what a caller needs.
        peers: the experiment's, by name.
    """

    def __init__(self, lock: Lock, peers: tuple[str, ...]) -> None:
        self._lock = lock
        self._peers = peers
        self._lobby = Lobby(len(peers))

    def guard(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """A method's handler behind the door; see `serving.Server`."""
        if not method.startswith(SERVICE):
            return handler
        return grpc.stream_stream_rpc_method_handler(
            self._guarded(handler, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, handler: Any, method: str) -> Callable[[Any, Any], Awaitable[None]]:
        """`handler` behind the door. On the wire every kind of call is a stream in each direction."""
        waiting = self._lobby.waiting
        rooms = {"Watch": self._lobby.watchers, "GetSampleOrder": self._lobby.orders}
        room = rooms.get(method.removeprefix(SERVICE), self._lobby.answers)

        async def handle(requests: Any, context: Any) -> None:
            try:
                caller = self._caller(context)
                if handler.stream_stream is not None:
                    await handler.stream_stream(requests, _Entering(context, caller, waiting))
                    return
                request = await waiting.hold(_request(context), _host(context))
                await room.hold(_answer(handler, request, context), _host(context))
            except EntangledError as error:
                log.warning("refused %s: %s", context.peer(), error)
                await _abort(context, error)

        return handle

    def _caller(self, context: Any) -> str | None:
        caller = self._lock.caller(dict(context.invocation_metadata() or ()), context.auth_context())
        if caller is not None and caller != OPERATOR and caller not in self._peers:
            raise MembershipError(
                "no such peer in this experiment", expected=" or ".join((*self._peers, OPERATOR)), got=caller
            )
        return caller


def _host(context: Any) -> str:
    """Of the caller, without its port."""
    return context.peer().rpartition(":")[0]


async def _request(context: Any) -> Any:
    """A call's one message."""
    try:
        request = await context.read()
    except DecodeError as error:
        raise ProtocolError(f"a message cannot be read: {error}") from None
    if request is grpc.aio.EOF:
        raise ProtocolError("a call without a request")
    codec.refuse_unknown(request)
    return request


async def _answer(handler: Any, request: Any, context: Any) -> None:
    if handler.unary_unary is not None:
        await context.write(await handler.unary_unary(request, context))
        return
    async for reply in handler.unary_stream(request, context):
        await context.write(reply)


class _Entering:
    """A stream's context, for which every join must be in the caller's name: each channel begins with one."""

    def __init__(self, context: Any, caller: str | None, waiting: Room) -> None:
        self._context, self._caller, self._waiting = context, caller, waiting
        self._joined = False
        self._first: asyncio.Task[None] | None = None
        self._then: Then | None = None
        self.write, self.send, self.abort, self.peer = context.write, context.send, context.abort, context.peer

    async def read(self) -> Any:
        """The next message; every join in it must be in the caller's name."""
        reading = self._context.read()
        message = await (reading if self._joined else self._waiting.hold(reading, _host(self._context)))
        self._check(message)
        return message

    def receive(self, then: Then) -> None:
        """Have `then` told the next message, or the error why it may not come in; see `serving.Call`."""
        self._then = then
        if self._joined:
            self._context.receive(self._checked)
        else:
            self._first = asyncio.get_running_loop().create_task(self._receive_first(then))

    def _checked(self, message: Any) -> None:
        if not (isinstance(message, pb.PeerMessage) and _is_prediction(message)):  # by far the most
            try:
                self._check(message)
            except EntangledError as error:
                message = error
        if self._then is not None:
            self._then(message)

    async def _receive_first(self, then: Then) -> None:
        try:
            message = await self.read()
        except (EntangledError, DecodeError) as error:
            then(error)
            return
        then(None if message is grpc.aio.EOF else message)

    def _check(self, message: Any) -> None:
        if isinstance(message, pb.SamplesHeld) and self._caller is not None:
            check_name(self._caller, message.peer)
        if isinstance(message, pb.PeerMessage):
            for spoken in message.bundle.messages if message.HasField("bundle") else (message,):
                if spoken.HasField("join"):
                    check_join(self._caller, spoken.join)
                    self._joined = True


def _is_prediction(message: pb.PeerMessage) -> bool:
    return message.HasField("prediction") or message.HasField("predictions")


def check_join(caller: str | None, join: pb.Join) -> None:
    """Raise a RefusedError if `caller`, whose name is proven where it is not None, may not join like this."""
    if caller is not None:
        check_name(caller, join.peer)
    if len(join.instance) > MOST_CHARACTERS:
        raise ProtocolError(
            "a join's instance is too long",
            expected=f"at most {MOST_CHARACTERS} characters",
            got=f"{len(join.instance)} characters",
        )


def check_name(caller: str, peer: str) -> None:
    """Raise MembershipError if `caller`, whose name is proven, speaks as another `peer`."""
    if caller != peer:
        raise MembershipError(
            f"{caller} may not speak as {peer or 'nobody'}: the name that a peer joins under is the one that its "
            "certificate or token proves",
            expected=caller,
            got=peer or "no name",
        )


async def _abort(context: Any, error: EntangledError) -> None:
    code, details, trailing = to_status(error)
    await context.abort(code, details, trailing)
