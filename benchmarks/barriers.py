"""One process of a barrier exchange: `python -m benchmarks.barriers KIND ROLE …`. What `benchmarks.exchange` starts.

Every kind does the same work: each of N peers, a process of its own, publishes a batch of probability distributions and
waits for everybody else's. A peer prints the exchanges per second between its first tenth and its end.

| kind | |
|---|---|
| `entangled` | a coordinator's process and our client: checks, digests, log |
| `many` | the same with several peers in a process, over one stream |
| `bare` | the same gRPC stack, options, messages and means, on a server that does no more: no checks, digests, log |
| `polled` | `bare` without threads beside the one that works; it is in `benchmarks.polled` |
| `gloo` | `torch.distributed.all_gather` |
| `ray` | an async actor that waits for everybody |
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from entangled import allocator, grpc_settings

grpc_settings.apply()
allocator.keep_freed()

import grpc.aio  # noqa: E402
import numpy as np  # noqa: E402
import typer  # noqa: E402
import uvloop  # noqa: E402

from entangled import codec  # noqa: E402
from entangled.alignment import Position, fingerprint  # noqa: E402
from entangled.distribution import Probabilities, published, soft_targets  # noqa: E402
from entangled.v1 import exchange_pb2 as pb  # noqa: E402

app = typer.Typer(add_completion=False, rich_markup_mode=None)
METHOD = "/entangled.v1.Coordinator/Exchange"
DIGEST = bytes(16)
TOGETHER = 8
"""Peers of one process that predict before anything of theirs is sent, as threads would."""

Rows = Annotated[int, typer.Option()]
Classes = Annotated[int, typer.Option()]
Exchanges = Annotated[int, typer.Option()]


def made_up(rows: int, classes: int, seed: int) -> list[Probabilities]:
    """A few random predictions to publish in turn."""
    random = np.random.default_rng(seed)
    raw = random.random((16 if rows * classes < 100_000 else 2, rows, classes), dtype=np.float32) + 1e-3
    return list(raw / raw.sum(axis=2, keepdims=True))


class Stopwatch:
    """Exchanges per second between the first tenth and the end."""

    def __init__(self, exchanges: int) -> None:
        self._warm, self._exchanges, self._began = exchanges // 10, exchanges, 0.0

    def done(self, number: int) -> None:
        """Exchange `number`, from 0, is over."""
        if number + 1 == self._warm:
            self._began = time.perf_counter()
        if number + 1 == self._exchanges:
            print((self._exchanges - self._warm) / (time.perf_counter() - self._began), flush=True)


@app.command()
def entangled(address: str, peer: str, rows: Rows, classes: Classes, exchanges: Exchanges) -> None:
    """A peer of a real coordinator, by the client that our training processes use."""
    from entangled.participation.client import CoordinatorClient

    client = CoordinatorClient(address, peer)
    mine, watch = made_up(rows, classes, client.experiment.peer_names.index(peer)), Stopwatch(exchanges)
    mine = [published(p, top_k=client.experiment.exchange.publish.top_k) for p in mine]
    client.join(fingerprint(np.arange(rows * exchanges), classes))
    order = client.order(0)
    for step in range(exchanges):
        client.exchange(Position(0, step), order[step * rows : (step + 1) * rows], mine[step % len(mine)])
        watch.done(step)
    client.finish({"loss": 0.0})


@app.command()
def many(
    address: str,
    peers: list[str],
    rows: Rows,
    classes: Classes,
    exchanges: Exchanges,
    coordinator: Annotated[int, typer.Option(help="Its process id.")] = 0,
) -> None:
    """Several peers of a real coordinator in one process, over one stream.

    Before the rate it prints a JSON object: microseconds of CPU for each peer's part in an exchange, between the first
    tenth and the end, of this process and of the coordinator's; and the MiB that the latter took at most.
    """
    from entangled.participation.client import CoordinatorClient
    from entangled.participation.link import Link

    link = Link(address, 60, several=True)
    clients = [CoordinatorClient(address, peer, link=link) for peer in peers]
    data = fingerprint(np.arange(rows * exchanges), classes)
    for client in clients:
        client.join(data)
    names = link.experiment.peer_names
    publish = link.experiment.exchange.publish
    shape = publish.temperature, publish.top_k, publish.decimals
    predictions = [[published(p, *shape) for p in made_up(rows, classes, names.index(peer))] for peer in peers]
    order, watch, used = link.order(0, rows * exchanges), Stopwatch(exchanges), [0.0, 0.0]
    for step in range(exchanges):
        position, ids = Position(0, step), order[step * rows : (step + 1) * rows]
        for number, (client, mine) in enumerate(zip(clients, predictions, strict=True), 1):
            client.submit(position, ids, mine[step % len(mine)])
            if number % TOGETHER == 0:
                link.push()  # what is submitted goes out, while the next are prepared
        for client in clients:
            client.result(position)
        if step + 1 in (exchanges // 10, exchanges):
            used = [now - before for now, before in zip((time.process_time(), _cpu(coordinator)), used, strict=True)]
        if step + 1 == exchanges:
            parts = (exchanges - exchanges // 10) * len(peers)
            mine, theirs = (1e6 * seconds / parts for seconds in used)
            found = {"client": mine, "coordinator": theirs * len(peers) / len(names), "MiB": _most_mib(coordinator)}
            print(json.dumps(found), flush=True)
        watch.done(step)
    for client in clients:
        client.finish({"loss": 0.0})
    link.close()


def _cpu(process: int) -> float:
    """Seconds of CPU that a process has used; 0 for none."""
    if not process:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _most_mib(process: int) -> float:
    """How large a process has been at most, in MiB; 0 for none."""
    if not process:
        return 0.0
    return int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@app.command()
def without_log(experiment: Path, run_dir: Path, address: str) -> None:
    """A coordinator whose log takes everything and keeps nothing."""
    import coordinator.server
    from coordinator.__main__ import configure_process
    from entangled import experiment_file

    class Forgetful:
        """Says that it is durable, as the real one does: from another turn, many at a time."""

        chain, resumed, members = b"", 0, ()

        def __init__(self, _run: Path, _experiment: Any, on_durable: Any, _on_error: Any) -> None:
            self._on_durable, self._loop, self._index = on_durable, asyncio.get_running_loop(), -1

        def add(self, exchange: Any) -> None:
            if self._index < 0:
                self._loop.call_later(0.05, self._flush)
            self._index = exchange.index

        def _flush(self) -> None:
            self._on_durable(self._index + 1)
            self._index = -1

        def thin(self, before: int) -> None:
            pass

        def close(self, *, finished: bool) -> None:
            pass

    coordinator.server.Recorder = Forgetful  # pyright: ignore[reportAttributeAccessIssue]
    coordinator.server._summary = lambda *_: {}  # pyright: ignore[reportPrivateUsage] # it reads the log
    run_dir.mkdir(parents=True, exist_ok=True)
    configure_process()
    coordinator.server.serve(experiment_file.load(str(experiment)), address, run_dir)


# ---- the same gRPC stack, bare


def averaged(said: list[pb.Prediction]) -> list[pb.CoordinatorMessage]:
    """For each of a batch's predictions, as they came, the answer with the mean of the others."""
    means = soft_targets([np.frombuffer(p.probabilities, np.float32).reshape(p.rows, p.classes) for p in said])
    return [
        pb.CoordinatorMessage(
            soft_target=pb.SoftTarget(
                epoch=prediction.epoch,
                step=prediction.step,
                batch_digest=prediction.batch_digest,
                weight=0.5,
                rows=prediction.rows,
                classes=prediction.classes,
                probabilities=mean.tobytes(),
            )
        )
        for prediction, mean in zip(said, means, strict=True)
    ]


@app.command()
def bare_server(address: str, peers: int) -> None:
    """Waits for everybody and sends each the mean of the others."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_bare(address, peers))


async def _serve_bare(address: str, peers: int) -> None:
    from coordinator.server import OPTIONS

    left = asyncio.Event()
    waiting: dict[int, tuple[pb.Prediction, asyncio.Future[pb.CoordinatorMessage]]] = {}
    streams: list[int] = []
    loop = asyncio.get_running_loop()

    async def exchange(_: Any, context: Any) -> None:
        number = len(streams)
        streams.append(number)
        while (message := await context.read()) is not grpc.aio.EOF:
            future = loop.create_future()
            waiting[number] = message.prediction, future
            if len(waiting) == peers:
                everybody = [who for _, who in sorted(waiting.items())]
                waiting.clear()
                for (_, who), answer in zip(everybody, averaged([said for said, _ in everybody]), strict=True):
                    who.set_result(answer)
            await context.write(await future)
        streams.remove(number)
        if not streams:
            left.set()

    server = grpc.aio.server(options=[*OPTIONS, ("grpc.max_receive_message_length", codec.MAX_MESSAGE_BYTES)])
    handler = grpc.stream_stream_rpc_method_handler(
        exchange, pb.PeerMessage.FromString, pb.CoordinatorMessage.SerializeToString
    )
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(address)
    await server.start()
    await left.wait()
    await server.stop(1)


@app.command()
def bare(address: str, number: int, rows: Rows, classes: Classes, exchanges: Exchanges) -> None:
    """A peer of `bare-server`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_bare(address, number, rows, classes, exchanges))


async def _bare(address: str, number: int, rows: int, classes: int, exchanges: int) -> None:
    from entangled.participation.link import OPTIONS

    mine, watch = made_up(rows, classes, number), Stopwatch(exchanges)
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await channel.channel_ready()
        stub: Any = channel.stream_stream(METHOD, pb.PeerMessage.SerializeToString, pb.CoordinatorMessage.FromString)
        call = stub()
        for step in range(exchanges):
            await call.write(codec.encode_prediction(Position(0, step), DIGEST, mine[step % len(mine)]))
            codec.decode_soft_target((await call.read()).soft_target)
            watch.done(step)
        await call.done_writing()


# ---- what others offer


@app.command()
def gloo(store: Path, number: int, peers: int, rows: Rows, classes: Classes, exchanges: Exchanges) -> None:
    """A rank of a `torch.distributed` group."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=peers)
    mine, watch = [torch.from_numpy(p) for p in made_up(rows, classes, number)], Stopwatch(exchanges)
    gathered = [torch.empty(rows, classes) for _ in range(peers)]
    for step in range(exchanges):
        dist.all_gather(gathered, mine[step % len(mine)])
        (torch.stack(gathered).sum(0) - gathered[number]) / (peers - 1)
        watch.done(step)
    dist.destroy_process_group()


@app.command()
def ray(peers: int, rows: Rows, classes: Classes, exchanges: Exchanges) -> None:
    """An async actor and a task for each peer, all of them Ray's processes."""
    import ray as ray_

    ray_.init(num_cpus=peers + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    @ray_.remote
    class Barrier:
        def __init__(self) -> None:
            self._waiting: dict[int, tuple[Probabilities, asyncio.Future[Probabilities]]] = {}

        async def exchange(self, number: int, prediction: Probabilities) -> Probabilities:
            future = asyncio.get_running_loop().create_future()
            self._waiting[number] = prediction, future
            if len(self._waiting) == peers:
                everybody = sorted(self._waiting.items())
                self._waiting = {}
                means = soft_targets([p for _, (p, _) in everybody])
                for (_, (_, who)), mean in zip(everybody, means, strict=True):
                    who.set_result(mean)
            return await future

    @ray_.remote
    def peer(barrier: Any, number: int) -> float:
        mine, warm, began = made_up(rows, classes, number), exchanges // 10, 0.0
        for step in range(exchanges):
            ray_.get(barrier.exchange.remote(number, mine[step % len(mine)]))
            if step + 1 == warm:
                began = time.perf_counter()
        return (exchanges - warm) / (time.perf_counter() - began)

    barrier = Barrier.options(max_concurrency=peers).remote()
    print(min(ray_.get([peer.remote(barrier, number) for number in range(peers)])), flush=True)
    ray_.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    app()
