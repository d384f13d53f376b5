"""A coordinator that says what a test tells it to, over real gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from entangled import PROTOCOL_VERSION
from entangled.errors import EntangledError
from entangled.experiment import Experiment
from entangled.experiment_file import dumps
from entangled.status import to_status
from entangled.v1 import exchange_pb2 as pb

WELCOME = pb.CoordinatorMessage(welcome=pb.Welcome(run_id="run")).SerializeToString()

Script = Callable[[Iterator[pb.PeerMessage]], Iterator[bytes]]
"""What is sent on a stream, given what comes on it. An error of ours that it raises is how the stream ends."""


@contextlib.contextmanager
def coordinator(address: str, experiment: Experiment, scripts: Iterator[Script]) -> Iterator[None]:
    """A coordinator of a run called "run" at `address`, each of whose streams follows the next of `scripts`."""

    def introduce(_: Any, context: Any) -> pb.GetExperimentReply:
        toml = dumps(experiment)
        return pb.GetExperimentReply(protocol_version=PROTOCOL_VERSION, experiment_toml=toml, run_id="run")

    def exchange(requests: Iterator[pb.PeerMessage], context: Any) -> Iterator[bytes]:
        try:
            yield from next(scripts)(requests)
        except EntangledError as error:
            code, details, trailing = to_status(error)
            context.set_trailing_metadata(trailing)
            context.abort(code, details)

    handlers = {
        "GetExperiment": grpc.unary_unary_rpc_method_handler(
            introduce, pb.GetExperimentRequest.FromString, pb.GetExperimentReply.SerializeToString
        ),
        "Exchange": grpc.stream_stream_rpc_method_handler(exchange, pb.PeerMessage.FromString),
    }
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("entangled.v1.Coordinator", handlers)])
        server.add_insecure_port(address)
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
