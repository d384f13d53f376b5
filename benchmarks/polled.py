"""The bare barrier without a thread for gRPC: `python -m benchmarks.polled server|peer …`.

A contender of `benchmarks.exchange`, started by it.

`grpc.aio` has a thread that waits for gRPC and wakes the event loop's for everything that is done: a message sent, a
message come. Here each process has one thread, which asks gRPC itself (`grpc._cython.cygrpc`, what `grpc` and
`grpc.aio` are made of, and which has no promise to stay as it is), and hands over a message to be sent together with
the wish for the next one. Messages, options and means are those of the bare barrier in `benchmarks.barriers`; what
differs between the two is what the threads cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from entangled import allocator, grpc_settings

grpc_settings.apply()
allocator.keep_freed()

import grpc  # noqa: E402
import typer  # noqa: E402
from grpc._cython import cygrpc  # noqa: E402

from benchmarks.barriers import DIGEST, METHOD, Classes, Exchanges, Rows, Stopwatch, averaged, made_up  # noqa: E402
from entangled import codec  # noqa: E402
from entangled.alignment import Position  # noqa: E402
from entangled.v1 import exchange_pb2 as pb  # noqa: E402

app = typer.Typer(add_completion=False, rich_markup_mode=None)
raw: Any = cygrpc
NO_FLAGS = 0
CONNECT_SECONDS = 30


@app.command()
def server(address: str, peers: int) -> None:
    """Waits for everybody and sends each the mean of the others."""
    from coordinator.server import OPTIONS

    queue = raw.CompletionQueue()
    listening = raw.Server([*OPTIONS, ("grpc.max_receive_message_length", codec.MAX_MESSAGE_BYTES)], False)
    listening.register_completion_queue(queue)
    listening.add_http2_port(address.encode())
    listening.start()
    waiting: dict[int, tuple[pb.Prediction, Callable[[pb.CoordinatorMessage], None]]] = {}
    left = 0

    def answer_all() -> None:
        everybody = [who for _, who in sorted(waiting.items())]
        waiting.clear()
        for (_, answer), message in zip(everybody, averaged([said for said, _ in everybody]), strict=True):
            answer(message)

    def serve(call: Any, number: int) -> None:
        def answer(message: pb.CoordinatorMessage) -> None:
            sending = raw.SendMessageOperation(message.SerializeToString(), NO_FLAGS)
            call.start_server_batch((sending, raw.ReceiveMessageOperation(NO_FLAGS)), came)

        def came(event: Any) -> None:
            nonlocal left
            data = event.batch_operations[-1].message()
            if data is None:
                left += 1
                status = raw.SendStatusFromServerOperation((), raw.StatusCode.ok, b"", NO_FLAGS)
                call.start_server_batch((status,), ignore)
                return
            waiting[number] = pb.PeerMessage.FromString(data).prediction, answer
            if len(waiting) == peers:
                answer_all()

        call.start_server_batch((raw.ReceiveCloseOnServerOperation(NO_FLAGS),), ignore)
        greeting = raw.SendInitialMetadataOperation((), NO_FLAGS)
        call.start_server_batch((greeting, raw.ReceiveMessageOperation(NO_FLAGS)), came)

    def ignore(_: Any) -> None:
        pass

    for number in range(peers):
        listening.request_call(queue, queue, lambda event, number=number: serve(event.call, number))
    while left < peers:
        event = queue.poll(time.time() + 1)
        if event.completion_type != raw.CompletionType.queue_timeout:
            event.tag(event)
    while queue.poll(time.time() + 1).completion_type != raw.CompletionType.queue_timeout:
        pass  # what is still on its way to the peers


@app.command()
def peer(address: str, number: int, rows: Rows, classes: Classes, exchanges: Exchanges) -> None:
    """A peer of `server`."""
    from entangled.participation.link import OPTIONS

    mine, watch = made_up(rows, classes, number), Stopwatch(exchanges)
    with grpc.insecure_channel(address, options=OPTIONS) as opened:
        grpc.channel_ready_future(opened).result(CONNECT_SECONDS)
        channel: Any = opened
        begun = raw.SendInitialMetadataOperation(None, NO_FLAGS), raw.ReceiveInitialMetadataOperation(NO_FLAGS)
        ended = (raw.ReceiveStatusOnClientOperation(NO_FLAGS),)  # pending for as long as the call lives
        call = channel._channel.segregated_call(
            raw.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            METHOD.encode(),
            *(None, None, None, None),
            ((ended, "ended"), (begun, "begun")),
            None,
        )

        def done(operations: tuple[Any, ...], what: str) -> Any:
            call.operate(operations, what)
            while (event := call.next_event()).tag != what:
                if event.tag == "ended":
                    raise RuntimeError("the server has ended the call")
            return event

        for step in range(exchanges):
            message = codec.encode_prediction(Position(0, step), DIGEST, mine[step % len(mine)])
            sending = raw.SendMessageOperation(message.SerializeToString(), NO_FLAGS)
            event = done((sending, raw.ReceiveMessageOperation(NO_FLAGS)), "exchanged")
            reply = pb.CoordinatorMessage.FromString(event.batch_operations[-1].message())
            codec.decode_soft_target(reply.soft_target)
            watch.done(step)
        call.operate((raw.SendCloseFromClientOperation(NO_FLAGS),), "closed")
        while call.next_event().tag != "ended":
            pass


if __name__ == "__main__":
    app()
