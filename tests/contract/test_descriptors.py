"""Guarantee 4, in the schema itself: nothing that a peer sends has room for weights, gradients, inputs or labels.

Every field of every message that a peer can send stands here. A new one fails this test until somebody has thought
about whether a model or data could leave a peer in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from entangled.v1 import exchange_pb2 as pb

ALLOWED = {
    "PeerMessage": {
        "join": "Join",
        "prediction": "Prediction",
        "metrics": "Metrics",
        "leave": "Leave",
        "settled": "Settled",
        "pace": "Pace",
        "heartbeat": "Heartbeat",
        "bundle": "PeerBundle",
        "channel": "uint32",
        "predictions": "Predictions",
    },
    "Predictions": {"channels": "repeated uint32", "prediction": "Prediction"},
    "PeerBundle": {"messages": "repeated PeerMessage"},
    "Heartbeat": {},
    "Join": {
        "protocol_version": "uint32",
        "peer": "string",
        "instance": "string",
        "origin": "string",
        "fingerprint": "Fingerprint",
    },
    "Fingerprint": {
        "samples": "uint64",
        "classes": "uint32",
        "ids_digest": "bytes",
        "contents_digest": "bytes",
    },
    "Prediction": {
        "epoch": "uint32",
        "step": "uint32",
        "batch_digest": "bytes",
        "rows": "uint32",
        "classes": "uint32",
        "probabilities": "bytes",
        "encoding": "enum",
        "classes_of": "bytes",
    },
    "Pace": {"step_us": "uint64", "round_trip_us": "uint64"},
    "Metrics": {
        "epoch": "uint32",
        "step": "uint32",
        "values": "repeated Metrics.ValuesEntry",
        "epoch_end": "bool",
        "final": "bool",
    },
    "Metrics.ValuesEntry": {"key": "string", "value": "double"},
    "Settled": {"complete": "uint64"},
    "Leave": {"failure": "string"},
    "GetExperimentRequest": {"protocol_version": "uint32"},
    "GetSampleOrderRequest": {"epoch": "uint32"},
    "SamplesHeld": {"peer": "string", "sample_ids": "repeated int64"},
    "WatchRequest": {},
}
TENSOR = {"Prediction.probabilities", "Prediction.classes_of"}
DIGESTS = {"Fingerprint.ids_digest", "Fingerprint.contents_digest", "Prediction.batch_digest"}
SCALARS_BY_NAME = {"Metrics.values"}
MESSAGES = {"PeerBundle.messages"}
CHANNELS = {"Predictions.channels"}
"""Each once, and no other than those that a peer has joined on."""
NAMES_OF_SAMPLES = {"SamplesHeld.sample_ids"}
TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def sent_by_peers() -> list[Descriptor]:
    """Every message that a peer can send, in any method."""
    service = pb.DESCRIPTOR.services_by_name["Coordinator"]
    return list(reachable([method.input_type for method in service.methods]))


def reachable(roots: list[Descriptor]) -> Iterator[Descriptor]:
    seen: set[str] = set()
    while roots:
        message = roots.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            yield message
            roots += [field.message_type for field in message.fields if field.message_type is not None]


def name(message: Descriptor) -> str:
    return message.full_name.removeprefix("entangled.v1.")


def described(field: FieldDescriptor) -> str:
    kind = name(field.message_type) if field.message_type is not None else TYPES[field.type]
    return f"repeated {kind}" if field.is_repeated else kind


def test_guarantee_4_a_peers_messages_have_these_fields_and_no_other() -> None:
    found = {name(m): {f.name: described(f) for f in m.fields} for m in sent_by_peers()}
    assert found == ALLOWED
    assert all(not m.extension_ranges for m in sent_by_peers())


def test_guarantee_4_only_a_predictions_probabilities_could_hold_a_tensor() -> None:
    fields = {f"{name(m)}.{f.name}": f for m in sent_by_peers() for f in m.fields}
    data = {key for key, field in fields.items() if TYPES[field.type] in ("bytes", "group")}
    assert data == TENSOR | DIGESTS
    repeated = {key for key, field in fields.items() if field.is_repeated}
    assert repeated == SCALARS_BY_NAME | NAMES_OF_SAMPLES | MESSAGES | CHANNELS
    assert fields["Metrics.values"].message_type.GetOptions().map_entry  # a name may occur once


def test_the_walk_would_notice_a_new_field_anywhere() -> None:
    assert {name(m) for m in sent_by_peers()} >= {"PeerMessage", "Fingerprint", "Metrics.ValuesEntry"}
    assert {name(m) for m in reachable([pb.Activity.DESCRIPTOR])} == {
        "Activity",
        "Activity.Peer",
        "Activity.Peer.ValuesEntry",
    }


@pytest.mark.parametrize("method", list(pb.DESCRIPTOR.services_by_name["Coordinator"].methods), ids=lambda m: m.name)
def test_only_the_exchange_and_the_names_of_samples_take_a_stream(method) -> None:
    assert method.client_streaming == (method.name in ("Exchange", "AgreeSamples"))
