"""The gRPC client and a stream that ends: why it ended, and what is said on the next one."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entangled import codec
from entangled.alignment import Position, batch_digest
from entangled.credentials import NOTHING
from entangled.errors import AlignmentError, EntangledError, PredictionError, RunFailedError, UnreachableError
from entangled.participation.client import CoordinatorClient
from entangled.participation.link import OPTIONS, Link
from entangled.participation.stream import Stream
from entangled.v1 import exchange_pb2 as pb
from tests.scripted import WELCOME, Script, coordinator
from tests.support import data, experiment, prediction

FAILED = RunFailedError("peer b failed: no memory left")
IDS = np.arange(4)


def answer(position: Position) -> bytes:
    digest, target = batch_digest(position, IDS), prediction("b", position, 4)
    return codec.encode_soft_target(position, digest, 0.5, target).SerializeToString()


def welcoming(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
    assert next(requests).HasField("join")
    yield WELCOME


def test_a_write_that_meets_the_end_of_the_stream_does_not_hide_why_it_ended(tmp_path: Path) -> None:
    def fail_at_once(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        yield from welcoming(requests)
        raise FAILED

    address = f"unix:{tmp_path}/c.sock"
    with coordinator(address, experiment(), itertools.repeat(fail_at_once)):
        client = CoordinatorClient(address, "a")
        with contextlib.suppress(RunFailedError):  # it may hear so early
            client.join(data())
            for step in range(100):
                client.submit(Position(0, step), IDS, prediction("a", Position(0, step), 4))
        with pytest.raises(RunFailedError, match="peer b failed: no memory left"):
            client.result(Position(0, 0))
        client.close()


def test_what_is_sent_while_the_last_event_is_taken_in_does_not_keep_the_stream(tmp_path: Path) -> None:
    """Another thread's message, after gRPC has given the event: there is nothing more to wait for."""

    def fail(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        yield from welcoming(requests)
        next(requests)  # said when the welcome has been read, so that the end comes while the next is waited for
        raise FAILED

    address, beat = f"unix:{tmp_path}/c.sock", pb.PeerMessage(heartbeat=pb.Heartbeat())
    with coordinator(address, experiment(), itertools.repeat(fail)), NOTHING.channel(address, OPTIONS) as channel:
        stream, seen = Stream(channel, address, ()), list[str]()
        stream.send(pb.PeerMessage(join=pb.Join()))
        while not stream.over:
            event = stream.wait()
            seen.append(event.tag)
            if len(seen) == 6:
                stream.send(beat)
            if stream.take(event) is not None:
                stream.send(beat)
        assert sorted(seen) == ["begun", "came", "came", "ended", "sent", "sent"]
        assert not stream.sending
        assert str(stream.error) == str(FAILED)


def test_guarantee_6_everything_in_flight_is_sent_again_in_order_after_a_break(tmp_path: Path) -> None:
    """What was answered and may be lost comes first, then what is in flight. Results come in any order."""
    settings = experiment()
    positions = [settings.layout(10).position(index) for index in range(4)]
    streams: list[list[tuple[int, int]]] = []

    def heard(requests: Iterator[pb.PeerMessage]) -> None:
        said = [next(requests).prediction for _ in positions]
        streams.append([(one.epoch, one.step) for one in said])

    def break_off(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        yield from welcoming(requests)
        heard(requests)
        yield answer(positions[0])
        raise UnreachableError("the network is gone")

    def go_on(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        yield from welcoming(requests)
        heard(requests)
        yield from map(answer, positions)
        assert list(requests) == []

    address = f"unix:{tmp_path}/c.sock"
    scripts: list[Script] = [break_off, go_on]
    with coordinator(address, settings, iter(scripts)):
        client = CoordinatorClient(address, "a")
        client.join(data())
        for position in positions:
            client.submit(position, IDS, prediction("a", position, 4))
        results = [client.result(position) for position in (positions[0], *reversed(positions[1:]))]
        client.close()
    assert streams == [[tuple(p) for p in positions]] * 2
    for position, result in zip((positions[0], *reversed(positions[1:])), results, strict=True):
        assert result.probabilities.tobytes() == prediction("b", position, 4).tobytes()


def wrong_digest(target: pb.SoftTarget) -> None:
    target.batch_digest = bytes(16)


def cut_off(target: pb.SoftTarget) -> None:
    target.probabilities = target.probabilities[:-4]


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda _: None, None, ""),
        (wrong_digest, AlignmentError, "with another batch"),
        (cut_off, PredictionError, "do not fill its shape"),
    ],
    ids=["right", "wrong digest", "cut off"],
)
def test_soft_targets_of_several_are_one_message(
    tmp_path: Path, spoil: Callable[[pb.SoftTarget], None], kind: type[EntangledError] | None, words: str
) -> None:
    """Each peer gets its own out of it, or hears what is wrong; a channel that has ended is passed over."""
    start, names = Position(0, 0), ("a", "b")
    joined, targets = {}, {name: prediction(name, start, 4) for name in names}

    def talk(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        for _ in names:
            said = next(requests)
            joined[said.join.peer] = said.channel
            welcome = pb.CoordinatorMessage.FromString(WELCOME)
            welcome.channel = said.channel
            yield welcome.SerializeToString()
        heard = list[tuple[int, bytes]]()
        while len(heard) < len(names):
            said = next(requests)
            for one in said.bundle.messages or (said,):
                parts = one.predictions.channels or [one.channel]
                together = (one.predictions.prediction if len(parts) > 1 else one.prediction).probabilities
                each = len(together) // len(parts)
                heard += [(c, together[i * each :][:each]) for i, c in enumerate(parts)]
        assert dict(heard) == {joined[name]: prediction("ba"[i], start, 4).tobytes() for i, name in enumerate(names)}
        probabilities = np.concatenate([targets["b"], targets["a"], targets["a"]])
        target = codec.encode_soft_target(start, batch_digest(start, IDS), 0.5, probabilities).soft_target
        target.rows = 4
        spoil(target)
        several = pb.SoftTargets(channels=[joined["b"], joined["a"], 99], soft_target=target)
        yield pb.CoordinatorMessage(soft_targets=several).SerializeToString()
        for _ in requests:
            pass

    address = f"unix:{tmp_path}/c.sock"
    with coordinator(address, experiment(), itertools.repeat(talk)):
        link = Link(address, several=True)
        clients = {name: CoordinatorClient(address, name, link=link) for name in names}
        for client in clients.values():
            client.join(data())
        for place, client in enumerate(clients.values()):
            client.submit(start, IDS, prediction("ba"[place], start, 4))
        for name, client in clients.items():
            if kind is None:
                assert client.result(start).probabilities.tobytes() == targets[name].tobytes()
            else:
                with pytest.raises(kind, match=words):
                    client.result(start)
        link.close()


class Bell(Exception):  # noqa: N818 # not an error
    """What a signal's handler raises."""


def test_a_signal_ends_the_waiting_and_the_peer_can_go_on(tmp_path: Path) -> None:
    """As Ctrl-C in a notebook does. gRPC gives up a call that waits when it happens; then there is a new one."""
    start, rung = Position(0, 0), threading.Event()

    def ring(*_: Any) -> None:
        raise Bell

    def talk(requests: Iterator[pb.PeerMessage]) -> Iterator[bytes]:
        yield from welcoming(requests)
        assert next(requests).HasField("prediction")
        if not rung.is_set():
            signal.raise_signal(signal.SIGUSR1)
        rung.wait(60)
        yield answer(start)
        for _ in requests:
            pass

    address = f"unix:{tmp_path}/c.sock"
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with coordinator(address, experiment(), itertools.repeat(talk)):
            client = CoordinatorClient(address, "a")
            client.join(data())
            with pytest.raises(Bell):
                client.exchange(start, IDS, prediction("a", start, 4))
            rung.set()
            assert client.result(start).probabilities.tobytes() == prediction("b", start, 4).tobytes()
            client.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
