"""What must be in the environment before grpc is imported."""

import os


def apply() -> None:
    """Settings under which the exchange is fastest; see docs/adr for the measurement. The user's own win.

    Unused gRPC features stay off, and gRPC's own log, too: what goes wrong is told by our own errors. `poll` and not
    `epoll`, because a unix socket wakes who waits for it by `epoll` also when the other side has read.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
