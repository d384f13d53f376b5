"""`python -m entangled.launch.health`: does a coordinator serve, does a peer take part? For container health checks."""

from entangled import grpc_settings

grpc_settings.apply()

from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import grpc  # noqa: E402
import typer  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

from entangled import credentials, process  # noqa: E402
from entangled.credentials import NOTHING, Credentials  # noqa: E402
from entangled.errors import EntangledError, MembershipError, UnreachableError  # noqa: E402
from entangled.v1 import exchange_pb2 as pb  # noqa: E402
from entangled.v1.exchange_pb2_grpc import CoordinatorStub  # noqa: E402

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def health(
    coordinator: Annotated[str, typer.Argument(help="host:port, or unix:PATH.", envvar="ENTANGLED_COORDINATOR")] = (
        "127.0.0.1:50051"
    ),
    peer: Annotated[
        str | None, typer.Option(help="Ask for this peer of the coordinator's.", envvar="ENTANGLED_PEER")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long the answer may take.")] = 3.0,
    certs: Annotated[
        Path | None, typer.Option(help="Folder with the certificate to show.", envvar="ENTANGLED_CERTS")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token to show.", envvar="ENTANGLED_TOKEN_FILE")
    ] = None,
) -> None:
    """Exit with 0 if all is well, with 1 and one line if not.

    A coordinator is well when its gRPC health service says SERVING; a peer, when the coordinator holds its connection
    or has its final metrics.

        python -m entangled.launch.health 127.0.0.1:50051
        python -m entangled.launch.health host:50051 --peer cnn
    """
    process.main(lambda: check(coordinator, peer, seconds, credentials.load(certs, token_file)))


def check(address: str, peer: str | None, seconds: float, shown: Credentials = NOTHING) -> None:
    """Return if all is well.

    Args:
        address: the coordinator's `host:port` or `unix:PATH`.
        peer: the peer to ask the coordinator for; None asks for the coordinator itself.
        seconds: how long the answer may take.
        shown: what is shown at the coordinator's door; asking for a peer needs what a peer or operator has.

    Raises:
        UnreachableError: nobody answers at `address` in time.
        MembershipError: the coordinator knows no such peer, or is not connected to it.
        EntangledError: the coordinator does not serve, or `address` is something else.
    """
    with shown.channel(address) as channel:
        try:
            if peer is None:
                _check_coordinator(channel, address, seconds)
            else:
                _check_peer(channel, address, peer, seconds, shown)
        except grpc.RpcError as error:
            call: Any = error
            if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                why = shown.why_not(address)
                raise UnreachableError(f"no coordinator answers at {address} within {seconds:g} s{why}") from None
            if call.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise MembershipError(f"the coordinator at {address} refuses: {call.details()}") from None
            raise EntangledError(f"{address} is no coordinator: {call.code().name}, {call.details()}") from None


def _check_coordinator(channel: grpc.Channel, address: str, seconds: float) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        got = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        raise EntangledError(f"the coordinator at {address} does not serve", expected="SERVING", got=got)


def _check_peer(channel: grpc.Channel, address: str, name: str, seconds: float, shown: Credentials) -> None:
    stub: Any = CoordinatorStub(channel)
    watching = stub.Watch(pb.WatchRequest(), timeout=seconds, metadata=shown.metadata)
    activity: pb.Activity = next(watching)
    watching.cancel()
    peers = {p.name: p for p in activity.peers}
    if name not in peers:
        raise MembershipError(f"no such peer at {address}", expected=" or ".join(peers), got=name)
    if not (peers[name].connected or peers[name].done):
        raise MembershipError(f"the coordinator at {address} has no connection to peer {name}")


if __name__ == "__main__":
    app(prog_name="python -m entangled.launch.health")
