"""What the coordinator offers around the exchange: the experiment, orders, watching, health, reflection, repeats."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from entangled import PROTOCOL_VERSION, codec, sending
from entangled.alignment import sample_order
from entangled.distribution import soft_targets
from entangled.errors import EntangledError, MembershipError, ProtocolError, RunFailedError
from entangled.exchange_log import read
from entangled.experiment import Experiment
from entangled.experiment_file import loads
from entangled.status import from_status
from entangled.v1 import exchange_pb2 as pb
from entangled.v1.exchange_pb2_grpc import CoordinatorStub
from tests.contract.conftest import Coordinate
from tests.contract.processes import DEADLINE, LiveCoordinator
from tests.contract.raw import RawPeer, as_one, final, join, on, predict
from tests.support import CLASSES, SAMPLES, experiment, prediction

SERVICE = "entangled.v1.Coordinator"
WAIT: dict[str, Any] = {"timeout": DEADLINE, "wait_for_ready": True}


@pytest.fixture
def settings() -> Experiment:
    return experiment()


@pytest.fixture
def live(coordinate: Coordinate, settings: Experiment) -> LiveCoordinator:
    return coordinate(settings)


@pytest.fixture
def stub(live: LiveCoordinator) -> Any:
    return CoordinatorStub(live.channel())


def refusal(call: Any) -> EntangledError:
    with pytest.raises(grpc.RpcError) as refused:
        list(call) if hasattr(call, "__iter__") else call()
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    return from_status(error.code(), error.details(), error.trailing_metadata())


def together(settings: Experiment, peers: dict[str, RawPeer], index: int) -> dict[str, Any]:
    """One exchange of everybody; the soft targets."""
    for name, peer in peers.items():
        peer.send(predict(settings, name, index))
    return {name: peer.receive("soft_target") for name, peer in peers.items()}


def test_the_experiment_is_told_to_anybody_of_the_same_version(stub: Any, settings: Experiment) -> None:
    reply = stub.GetExperiment(pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION), **WAIT)
    assert loads(reply.experiment_toml, "reply") == settings
    assert reply.protocol_version == PROTOCOL_VERSION
    request = pb.GetExperimentRequest(protocol_version=PROTOCOL_VERSION + 1)
    error = refusal(lambda: stub.GetExperiment(request, **WAIT))
    assert type(error) is ProtocolError
    assert (error.expected, error.got) == (f"protocol {PROTOCOL_VERSION}", f"protocol {PROTOCOL_VERSION + 1}")


def test_guarantee_1_orders_are_the_same_at_every_call(stub: Any, live: LiveCoordinator, settings: Experiment) -> None:
    request = pb.GetSampleOrderRequest(epoch=1)
    assert "before a first peer has joined" in refusal(stub.GetSampleOrder(request, **WAIT)).message
    live.raw().joins("a")
    expected = sample_order(np.arange(SAMPLES), 100, settings.seed, 1)
    for _ in range(2):
        assert codec.decode_order(list(stub.GetSampleOrder(request, **WAIT))).tolist() == expected.tolist()
    error = refusal(stub.GetSampleOrder(pb.GetSampleOrderRequest(epoch=2), **WAIT))
    assert (error.message, error.expected, error.got) == ("no such epoch", "0 … 1", "2")


def test_watching_shows_the_run_from_beginning_to_end(stub: Any, live: LiveCoordinator, settings: Experiment) -> None:
    watch = stub.Watch(pb.WatchRequest(), **WAIT)
    first = next(watch)
    assert [(p.name, p.connected) for p in first.peers] == [("a", False), ("b", False)]
    assert (first.complete, first.total, first.finished) == (0, 0, False)
    peers = {name: live.raw() for name in "ab"}
    for name, peer in peers.items():
        peer.joins(name)
    peers["a"].send(pb.PeerMessage(metrics=pb.Metrics(epoch=0, step=0, values={"loss": 0.5})))
    seen = next(activity for activity in watch if activity.peers[0].values)
    assert dict(seen.peers[0].values) == {"loss": 0.5}
    assert all(p.connected for p in seen.peers)
    assert seen.total == 6
    for index in range(6):
        together(settings, peers, index)
    for peer in peers.values():
        peer.leaves(settings)
    *_, last = watch  # it ends by itself
    assert last.finished
    assert last.failure == ""
    assert last.complete == last.total == 6
    assert last.weight == 0.5
    assert all(p.done and p.values["test_loss"] == 1.0 for p in last.peers)


def test_who_watches_a_run_that_fails_is_told_why(stub: Any, live: LiveCoordinator) -> None:
    watch = stub.Watch(pb.WatchRequest(), **WAIT)
    next(watch)
    peer = live.raw()
    peer.joins("a")
    peer.send(pb.PeerMessage(leave=pb.Leave(failure="no memory left")))
    assert type(peer.refused()) is RunFailedError
    *_, last = watch
    assert last.finished
    assert last.failure == "peer a failed: no memory left"
    assert str(live.ended()) == "peer a failed: no memory left"


def test_one_stream_carries_several_peers(live: LiveCoordinator, settings: Experiment) -> None:
    raw = live.raw()
    raw.send(on(1, join("a")), on(7, join("b")))
    positions = settings.layout(SAMPLES).positions
    for index in range(positions):
        raw.send(on(7, predict(settings, "b", index)), on(1, predict(settings, "a", index)))
    raw.send(on(1, final(settings)), on(1, pb.PeerMessage(leave=pb.Leave())))
    raw.leaves_on(7, settings)
    for channel, other in ((1, "b"), (7, "a")):
        mine = [message for message in raw.received if message.channel == channel]
        assert mine[0].WhichOneof("kind") == "welcome"
        targets = [m.soft_target for m in mine if m.WhichOneof("kind") == "soft_target"]
        assert [t.probabilities for t in targets] == [
            predict(settings, other, index).prediction.probabilities for index in range(positions)
        ]
    assert {message.channel for message in raw.received} == {1, 7}
    assert live.ended() is None


def test_what_is_wrong_on_one_channel_ends_that_one_alone(live: LiveCoordinator, settings: Experiment) -> None:
    raw = live.raw()
    raw.send(on(1, join("a")), on(2, join("b")), on(2, predict(settings, "b", 5)))
    ended = raw.receive("ended")
    assert raw.received[-1].channel == 2
    assert ended.refusal.kind == "AlignmentError"
    assert "peer b is ahead of the run" in ended.refusal.message
    raw.send(on(2, predict(settings, "b", 0)))
    assert raw.receive("ended").refusal.message == "the first message must be a join"
    raw.send(on(3, join("b", instance="second b")), on(1, predict(settings, "a", 0)), on(3, predict(settings, "b", 0)))
    assert {raw.receive("soft_target").epoch for _ in "ab"} == {0}
    for index in range(1, settings.layout(SAMPLES).positions):
        raw.send(on(1, predict(settings, "a", index)), on(3, predict(settings, "b", index)))
    raw.send(on(1, final(settings)), on(1, pb.PeerMessage(leave=pb.Leave())))
    assert not raw.receive("ended").HasField("refusal")
    raw.leaves_on(3, settings)
    assert live.ended() is None


def test_predictions_of_several_are_one_message_and_so_are_their_answers(
    coordinate: Coordinate,
) -> None:
    settings = experiment(("a", "b", "c"))
    live = coordinate(settings)
    raw, alone = live.raw(), live.raw()
    raw.send(on(7, join("b")), on(2, join("a")))
    alone.joins("c")
    positions, size = settings.layout(SAMPLES).positions, 0
    for index in range(positions):
        message = as_one(on(7, predict(settings, "b", index)), on(2, predict(settings, "a", index)))
        raw.send(message)
        size += message.ByteSize()
        alone.exchange(settings, "c", index)
    raw.send(on(2, final(settings)), on(2, pb.PeerMessage(leave=pb.Leave())))
    raw.leaves_on(7, settings)
    alone.leaves(settings)
    for channel, name in ((2, "a"), (7, "b")):
        mine = [m.soft_target for m in raw.received if m.channel == channel and m.WhichOneof("kind") == "soft_target"]
        for index, target in enumerate(mine):
            said = {p: codec.decode_prediction(predict(settings, p, index).prediction)[2] for p in "abc"}
            wanted = dict(zip("abc", soft_targets(list(said.values())), strict=True))[name]
            assert target.probabilities == wanted.tobytes()
        assert len(mine) == positions
    assert live.ended() is None
    rows = [row for row, _ in read(live.run) if row.peer != "c"]
    assert sum(row.bytes for row in rows) == size  # each has its share of what came


def test_of_predictions_that_came_together_one_may_be_of_nobody(live: LiveCoordinator, settings: Experiment) -> None:
    raw, b = live.raw(), live.raw()
    b.joins("b")
    raw.send(on(1, join("a")), as_one(on(2, predict(settings, "b", 0)), on(1, predict(settings, "a", 0))))
    assert raw.receive("ended").refusal.message == "the first message must be a join"
    assert raw.received[-1].channel == 2
    assert b.exchange(settings, "b", 0).step == 0
    assert raw.receive("soft_target").step == 0
    assert raw.received[-1].channel == 1


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_of_predictions_that_came_together_the_wrong_one_alone_is_refused(
    live: LiveCoordinator, settings: Experiment, wrong: str
) -> None:
    raw, channels = live.raw(), {"a": 1, "b": 2}
    raw.send(*(on(channel, join(peer)) for peer, channel in channels.items()))
    said = {peer: on(channel, predict(settings, peer, 0)) for peer, channel in channels.items()}
    said[wrong].prediction.probabilities = np.full((4, CLASSES), 0.5, np.float32).tobytes()
    raw.send(as_one(*said.values()))
    ended = raw.receive("ended")
    assert raw.received[-1].channel == channels[wrong]
    assert f"peer {wrong}'s prediction for epoch 0 step 0: row 0 does not sum to 1" in ended.refusal.message
    raw.send(on(3, join(wrong, instance="again")), on(3, predict(settings, wrong, 0)))
    assert raw.receive("soft_target").epoch == 0
    assert raw.receive("soft_target").epoch == 0
    (right,) = channels.keys() - {wrong}
    assert {m.channel for m in raw.received if m.WhichOneof("kind") == "soft_target"} == {3, channels[right]}


def test_predictions_that_come_together_are_repeated_like_any_other(
    live: LiveCoordinator, settings: Experiment
) -> None:
    raw = live.raw()
    raw.send(on(1, join("a")), on(2, join("b")))
    for _ in range(2):
        raw.send(as_one(on(1, predict(settings, "a", 0)), on(2, predict(settings, "b", 0))))
    for index in (1, 2):
        raw.send(as_one(on(2, predict(settings, "b", index)), on(1, predict(settings, "a", index))))
    targets = [raw.receive("soft_target") for _ in range(8)]
    found = [m for m in raw.received if m.WhichOneof("kind") == "soft_target"]
    assert [target.step for target in targets] == [0, 0, 0, 0, 1, 1, 2, 2]
    for message in found:
        other = "b" if message.channel == 1 else "a"
        index = message.soft_target.step
        assert message.soft_target.probabilities == predict(settings, other, index).prediction.probabilities


def test_a_bundle_is_what_is_in_it(live: LiveCoordinator, settings: Experiment) -> None:
    raw = live.raw()
    raw.send(sending.bundle_of_peers([on(1, join("a")), on(2, join("b"))]))
    for index in range(settings.layout(SAMPLES).positions):
        raw.send(sending.bundle_of_peers([on(c, predict(settings, p, index)) for c, p in ((1, "a"), (2, "b"))]))
    raw.send(sending.bundle_of_peers([on(1, final(settings)), on(1, pb.PeerMessage(leave=pb.Leave()))]))
    raw.leaves_on(2, settings)
    assert live.ended() is None
    assert [row.prediction.tobytes() for row, _ in read(live.run)][:2] == [
        prediction(p, (0, 0), 4).tobytes() for p in "ab"
    ]


def test_a_stream_has_no_more_channels_than_there_are_peers(live: LiveCoordinator) -> None:
    raw = live.raw()
    raw.send(on(1, join("a")), on(2, join("b")), on(3, join("a", "another")))
    assert "a stream has more peers than the experiment" in str(raw.refused())


def test_health_is_served_for_probes(live: LiveCoordinator) -> None:
    health = health_pb2_grpc.HealthStub(live.channel())
    for service in ("", SERVICE):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), **WAIT)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="entangled.v2.Coordinator"), **WAIT)
    unknown: Any = refused.value
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_service_and_its_schema(live: LiveCoordinator) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(live.channel())
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    listed, schema = reflection.ServerReflectionInfo(iter(requests), **WAIT)
    names = {service.name for service in listed.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert pb.DESCRIPTOR.serialized_pb in schema.file_descriptor_response.file_descriptor_proto


def test_a_second_living_process_is_refused_naming_the_first(live: LiveCoordinator, settings: Experiment) -> None:
    peers = {name: live.raw() for name in "ab"}
    for name, peer in peers.items():
        peer.joins(name)
    second = live.raw()
    message = join("a", instance="second a")
    message.join.origin = "another host"
    second.send(message)
    error = second.refused()
    assert type(error) is MembershipError
    assert error.message.startswith("peer a is here already, from host of a; this is another host.")
    together(settings, peers, 0)  # the first is still welcome


def test_guarantee_2_a_repeated_prediction_on_a_new_connection_is_answered_the_same(
    live: LiveCoordinator, settings: Experiment
) -> None:
    peers = {name: live.raw() for name in "ab"}
    for name, peer in peers.items():
        peer.joins(name)
    first = together(settings, peers, 0)["a"]
    old, peers["a"] = peers["a"], live.raw()
    assert peers["a"].joins("a").complete == 1  # the same process, which has not noticed that the old one is alive
    assert "joined again elsewhere" in old.refused().message
    peers["a"].send(predict(settings, "a", 0))
    again = peers["a"].receive("soft_target")
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    peers["a"].send(predict(settings, "a", 0, seed=9))  # another one now
    assert peers["a"].receive("soft_target").probabilities == first.probabilities
    for index in range(1, 6):
        together(settings, peers, index)
    for peer in peers.values():
        peer.leaves(settings)
    assert live.ended() is None
    rows = [row for row, _ in read(live.run)]
    assert [(row.index, row.peer) for row in rows] == [(i, p) for i in range(6) for p in "ab"]
    assert rows[0].prediction.tobytes() == prediction("a", rows[0].position, 4).tobytes()


def test_guarantee_2_the_first_of_two_predictions_counts(live: LiveCoordinator, settings: Experiment) -> None:
    peers = {name: live.raw() for name in "ab"}
    for name, peer in peers.items():
        peer.joins(name)
    peers["a"].send(predict(settings, "a", 0), predict(settings, "a", 0, seed=9))
    peers["b"].send(predict(settings, "b", 0), predict(settings, "b", 0, seed=9))
    for name, other in (("a", "b"), ("b", "a")):
        assert peers[name].receive("soft_target").probabilities == prediction(other, (0, 0), 4).tobytes()


def test_guarantee_2_a_prediction_repeated_before_the_answer_counts_once(
    live: LiveCoordinator, settings: Experiment
) -> None:
    a, b = live.raw(), live.raw()
    a.joins("a"), b.joins("b")
    a.send(predict(settings, "a", 0), predict(settings, "a", 0, seed=9))
    a.close()
    again = live.raw()
    again.joins("a")
    again.send(predict(settings, "a", 0))
    b.send(predict(settings, "b", 0))
    assert b.receive("soft_target").probabilities == prediction("a", (0, 0), 4).tobytes()
    assert again.receive("soft_target").probabilities == prediction("b", (0, 0), 4).tobytes()


def test_guarantee_6_peers_are_told_what_is_on_disk(live: LiveCoordinator, settings: Experiment) -> None:
    peers = {name: live.raw() for name in "ab"}
    for name, peer in peers.items():
        peer.joins(name)
    together(settings, peers, 0)
    for peer in peers.values():
        assert peer.receive("durable").complete == 1
    assert [(row.index, row.peer) for row, _ in read(live.run)] == [(0, "a"), (0, "b")]


def test_guarantee_7_the_end_of_patience_is_told_to_everybody(coordinate: Coordinate) -> None:
    live = coordinate(experiment(("a", "b", "c"), patience=2.0))
    a, b = live.raw(), live.raw()
    a.joins("a"), b.joins("b")
    a.send(predict(live.experiment, "a", 0))
    said = {str(peer.refused()) for peer in (a, b)} | {str(live.ended())}
    assert len(said) == 1
    assert "at epoch 0 step 0 for b (connected), c (not connected)" in said.pop()


def test_samples_are_agreed_on_only_where_peers_have_views(stub: Any) -> None:
    held = iter([pb.SamplesHeld(peer="a", sample_ids=[1])])
    error = refusal(stub.AgreeSamples(held, **WAIT))
    assert isinstance(error, ProtocolError)
    assert "there is nothing to agree on" in str(error)


def test_an_agreement_ends_when_somebody_is_waited_for_too_long(coordinate: Coordinate) -> None:
    live = coordinate(experiment(vertical=True, patience=0.5))
    call = CoordinatorStub(live.channel()).AgreeSamples(iter([pb.SamplesHeld(peer="a", sample_ids=[1])]), **WAIT)
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
