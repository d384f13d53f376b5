from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_FLOAT32_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_SPARSE: _ClassVar[Encoding]
ENCODING_FLOAT32_UNSPECIFIED: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_SPARSE: Encoding

class GetExperimentRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class GetExperimentReply(_message.Message):
    __slots__ = ("protocol_version", "experiment_toml", "run_id", "clock")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_TOML_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    experiment_toml: str
    run_id: str
    clock: int
    def __init__(self, protocol_version: _Optional[int] = ..., experiment_toml: _Optional[str] = ..., run_id: _Optional[str] = ..., clock: _Optional[int] = ...) -> None: ...

class GetSampleOrderRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class SampleOrderChunk(_message.Message):
    __slots__ = ("sample_ids",)
    SAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    sample_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sample_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplesHeld(_message.Message):
    __slots__ = ("peer", "sample_ids")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    sample_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, peer: _Optional[str] = ..., sample_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("join", "prediction", "metrics", "leave", "settled", "pace", "heartbeat", "bundle", "predictions", "channel")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    join: Join
    prediction: Prediction
    metrics: Metrics
    leave: Leave
    settled: Settled
    pace: Pace
    heartbeat: Heartbeat
    bundle: PeerBundle
    predictions: Predictions
    channel: int
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., metrics: _Optional[_Union[Metrics, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., pace: _Optional[_Union[Pace, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., bundle: _Optional[_Union[PeerBundle, _Mapping]] = ..., predictions: _Optional[_Union[Predictions, _Mapping]] = ..., channel: _Optional[int] = ...) -> None: ...

class PeerBundle(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[PeerMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[PeerMessage, _Mapping]]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("protocol_version", "peer", "instance", "origin", "fingerprint")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    peer: str
    instance: str
    origin: str
    fingerprint: Fingerprint
    def __init__(self, protocol_version: _Optional[int] = ..., peer: _Optional[str] = ..., instance: _Optional[str] = ..., origin: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("samples", "classes", "ids_digest", "contents_digest")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IDS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    samples: int
    classes: int
    ids_digest: bytes
    contents_digest: bytes
    def __init__(self, samples: _Optional[int] = ..., classes: _Optional[int] = ..., ids_digest: _Optional[bytes] = ..., contents_digest: _Optional[bytes] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("epoch", "step", "batch_digest", "rows", "classes", "probabilities", "encoding", "classes_of")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BATCH_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CLASSES_OF_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    batch_digest: bytes
    rows: int
    classes: int
    probabilities: bytes
    encoding: Encoding
    classes_of: bytes
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., batch_digest: _Optional[bytes] = ..., rows: _Optional[int] = ..., classes: _Optional[int] = ..., probabilities: _Optional[bytes] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., classes_of: _Optional[bytes] = ...) -> None: ...

class Predictions(_message.Message):
    __slots__ = ("channels", "prediction")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedScalarFieldContainer[int]
    prediction: Prediction
    def __init__(self, channels: _Optional[_Iterable[int]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ...) -> None: ...

class Pace(_message.Message):
    __slots__ = ("step_us", "round_trip_us")
    STEP_US_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    step_us: int
    round_trip_us: int
    def __init__(self, step_us: _Optional[int] = ..., round_trip_us: _Optional[int] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("epoch", "step", "values", "epoch_end", "final")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_END_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    values: _containers.ScalarMap[str, float]
    epoch_end: bool
    final: bool
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., epoch_end: _Optional[bool] = ..., final: _Optional[bool] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("complete",)
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    complete: int
    def __init__(self, complete: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("failure",)
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    failure: str
    def __init__(self, failure: _Optional[str] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("welcome", "soft_target", "durable", "heartbeat", "lookahead", "ended", "bundle", "soft_targets", "channel")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SOFT_TARGET_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SOFT_TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    soft_target: SoftTarget
    durable: Durable
    heartbeat: Heartbeat
    lookahead: Lookahead
    ended: Ended
    bundle: CoordinatorBundle
    soft_targets: SoftTargets
    channel: int
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., soft_target: _Optional[_Union[SoftTarget, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., lookahead: _Optional[_Union[Lookahead, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., bundle: _Optional[_Union[CoordinatorBundle, _Mapping]] = ..., soft_targets: _Optional[_Union[SoftTargets, _Mapping]] = ..., channel: _Optional[int] = ...) -> None: ...

class CoordinatorBundle(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[CoordinatorMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[CoordinatorMessage, _Mapping]]] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("run_id", "complete", "lookahead")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    complete: int
    lookahead: int
    def __init__(self, run_id: _Optional[str] = ..., complete: _Optional[int] = ..., lookahead: _Optional[int] = ...) -> None: ...

class Lookahead(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: int
    def __init__(self, batches: _Optional[int] = ...) -> None: ...

class SoftTarget(_message.Message):
    __slots__ = ("epoch", "step", "batch_digest", "weight", "rows", "classes", "probabilities", "encoding", "classes_of")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BATCH_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CLASSES_OF_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    batch_digest: bytes
    weight: float
    rows: int
    classes: int
    probabilities: bytes
    encoding: Encoding
    classes_of: bytes
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., batch_digest: _Optional[bytes] = ..., weight: _Optional[float] = ..., rows: _Optional[int] = ..., classes: _Optional[int] = ..., probabilities: _Optional[bytes] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., classes_of: _Optional[bytes] = ...) -> None: ...

class SoftTargets(_message.Message):
    __slots__ = ("channels", "soft_target")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SOFT_TARGET_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedScalarFieldContainer[int]
    soft_target: SoftTarget
    def __init__(self, channels: _Optional[_Iterable[int]] = ..., soft_target: _Optional[_Union[SoftTarget, _Mapping]] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("complete",)
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    complete: int
    def __init__(self, complete: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Activity(_message.Message):
    __slots__ = ("peers", "complete", "total", "weight", "finished", "failure")
    class Peer(_message.Message):
        __slots__ = ("name", "connected", "epoch", "step", "values", "done")
        class ValuesEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        NAME_FIELD_NUMBER: _ClassVar[int]
        CONNECTED_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        VALUES_FIELD_NUMBER: _ClassVar[int]
        DONE_FIELD_NUMBER: _ClassVar[int]
        name: str
        connected: bool
        epoch: int
        step: int
        values: _containers.ScalarMap[str, float]
        done: bool
        def __init__(self, name: _Optional[str] = ..., connected: _Optional[bool] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., done: _Optional[bool] = ...) -> None: ...
    PEERS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Activity.Peer]
    complete: int
    total: int
    weight: float
    finished: bool
    failure: str
    def __init__(self, peers: _Optional[_Iterable[_Union[Activity.Peer, _Mapping]]] = ..., complete: _Optional[int] = ..., total: _Optional[int] = ..., weight: _Optional[float] = ..., finished: _Optional[bool] = ..., failure: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "message", "expected", "got")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    expected: str
    got: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., expected: _Optional[str] = ..., got: _Optional[str] = ...) -> None: ...
