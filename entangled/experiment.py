"""The experiment: everything the two sides must agree on, parsed once into frozen models."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from entangled.alignment import Layout
from entangled.distribution import Combination
from entangled.errors import ExperimentError
from entangled.experiment_parts import COORDINATOR, Checkpoint, Classes, Peer, Placement, Private, Settings, View
from entangled.schedule import Constant, Cosine, Exponential, Linear, Piecewise, Schedule

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
MAX_LOOKAHEAD = 256
"""Batches. What is in flight is kept in memory, and in every checkpoint."""


class ShuffleBuffer(Settings):
    """Draw each next sample from a buffer of this size, as `tf.data.Dataset.shuffle` does."""

    buffer: Annotated[int, Field(gt=0)]


def _kind_of_shuffle(value: object) -> str:
    return "buffer" if isinstance(value, dict | ShuffleBuffer) else "word"


Shuffle = Annotated[
    Annotated[ShuffleBuffer, Tag("buffer")] | Annotated[Literal["full", "none"], Tag("word")],
    Discriminator(_kind_of_shuffle),  # so that a fault is told about the one that was meant
]


class Publication(Settings):
    """What a peer lets others see of its predictions, as `distribution.published`; nothing else leaves it."""

    temperature: Temperature = 1.0
    top_k: Annotated[int, Field(gt=0)] | None = None
    """Only so many most probable classes."""
    decimals: Annotated[int, Field(ge=1, le=6)] | None = None
    """Probabilities with so many decimals."""


class Exchange(Settings):
    """What is exchanged, how, and how much it counts."""

    data: str = ""
    """Samples that predictions are made on: `mnist`, `npz:PATH`, `keras:NAME`, `module:function`; `[a:b]` slices it.
    Where peers have private data, their labels are not looked at, and need not be there. Where
    peers have views, those that name no data are of this."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """How many there are; needed only where the data has no labels to tell."""
    shuffle: Shuffle = ShuffleBuffer(buffer=100)
    direction: Literal["self_other", "other_self"] = "self_other"
    """KL(self ‖ other), the notebook's, or KL(other ‖ self), deep mutual learning's."""
    weight: Schedule = Linear(schedule="linear", start=0.0, end=0.05)
    """λ."""
    combine: Literal["mean", "geometric", "confidence", "coverage"] = "mean"
    """How the others' predictions become one soft target, as `distribution.Combination`."""
    temperature: Temperature = 1.0
    """Of the soft target."""
    top_k: Annotated[int, Field(gt=0)] | None = None
    """Only so many most probable classes of the soft target."""
    publish: Publication = Publication()
    lookahead: int | Literal["auto"] = 0
    """At the step of batch t a peer publishes its prediction for batch t + lookahead, and learns from the soft target
    of batch t, which was made so many steps ago. `auto` hides the round trip that was measured at the start."""
    encoding: Literal["float32", "float16", "sparse"] = "float32"
    """How probabilities are written on the wire: `float16` rounds them, `sparse` leaves out those that are 0, which
    `publish.top_k` makes many."""
    patience: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Seconds that anybody is waited for."""
    on_missing: Literal["wait", "continue"] = "wait"
    """What to do when a peer stays away: wait for it, or complete exchanges without it until it is back."""
    missing_after: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds without a connection after which a peer is missing: 60 where the others continue, and not given else."""
    min_peers: Annotated[int, Field(gt=0)] | None = None
    """Peers without which no exchange is complete: 1 where the others continue, and not given else."""
    log: Literal["full", "sampled", "statistics"] = "full"
    """Whether the log keeps every prediction, those of every `log_every`-th exchange, or none, but what
    `distribution.statistics` tells of them."""
    log_every: Annotated[int, Field(gt=0)] | None = None
    """100 where the log is sampled, and not given else."""

    @field_validator("lookahead", mode="plain")
    @classmethod
    def _bounded(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 0 <= value <= MAX_LOOKAHEAD):
            return value
        raise ValueError(f'a number of batches, 0 … {MAX_LOOKAHEAD}, or "auto"; got {value!r}')

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("log") == "sampled":
            values = {"log_every": 100, **values}
        if isinstance(values, dict) and values.get("on_missing") == "continue":
            values = {"missing_after": 60.0, "min_peers": 1, **values}
        return values

    @model_validator(mode="after")
    def _only_to_continue(self) -> Exchange:
        given = [name for name in ("missing_after", "min_peers") if getattr(self, name) is not None]
        if given and self.on_missing == "wait":
            raise ValueError(f'exchange.{given[0]} says something only with exchange.on_missing = "continue"')
        if self.missing_after is not None and self.missing_after >= self.patience:
            raise ValueError(
                f"exchange.missing_after = {self.missing_after:g} must be less than exchange.patience = "
                f"{self.patience:g}, or the run would end before anybody is missing"
            )
        return self

    @model_validator(mode="after")
    def _only_sampled(self) -> Exchange:
        if self.log_every is not None and self.log != "sampled":
            raise ValueError(f'exchange.log_every says something only with exchange.log = "sampled", not "{self.log}"')
        return self

    def keeps(self, index: int) -> bool:
        """Whether the log keeps the predictions of the exchange at `index` for ever."""
        return self.log == "full" or (self.log_every is not None and index % self.log_every == 0)

    @property
    def continues(self) -> bool:
        """Whether exchanges go on without peers that stay away."""
        return self.on_missing == "continue"

    @property
    def least(self) -> int:
        """How many peers an exchange needs where not all are needed."""
        return self.min_peers or 1

    @property
    def shuffle_buffer(self) -> int | Literal["full", "none"]:
        """The shuffle as `alignment.sample_order` takes it."""
        return self.shuffle.buffer if isinstance(self.shuffle, ShuffleBuffer) else self.shuffle


class Experiment(Settings):
    """The whole experiment."""

    name: Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    exchange: Exchange
    checkpoint: Checkpoint = Checkpoint()
    baselines: tuple[Literal["alone", "pooled"], ...] = ()
    """What each peer trains again at the end, to compare: from the same initial weights, for as many steps, `alone` on
    its private data, or on everybody's `pooled`, which only an experiment can do."""
    peers: dict[Name, Peer]
    processes: Annotated[int, Field(gt=0)] | None = None
    """So many processes train the peers where one command starts them all on one machine, `shares` of them each; the
    peers of a process are threads of it, and share a stream. Not given, every peer has a process of its own."""
    ray: dict[str, Placement] = Field(default_factory=dict, exclude=True)
    """By peer, or `coordinator`. Never in what `experiment_file.dumps` writes: a run may go on elsewhere."""

    @field_validator("peers")
    @classmethod
    def _several(cls, peers: dict[str, Peer]) -> dict[str, Peer]:
        if len(peers) < 2:
            raise ValueError("an experiment needs at least two peers: with one there is nobody to exchange with")
        return peers

    @model_validator(mode="after")
    def _enough_peers(self) -> Experiment:
        if self.exchange.least > len(self.peers):
            raise ValueError(
                f"exchange.min_peers = {self.exchange.least} of only {len(self.peers)} peers: no exchange would ever "
                "be complete"
            )
        return self

    @model_validator(mode="after")
    def _piecewise_within_run(self) -> Experiment:
        weight = self.exchange.weight
        if (
            weight.schedule == "piecewise"
            and weight.per == "epoch"
            and max(weight.boundaries, default=0) >= self.epochs
        ):
            raise ValueError(f"exchange.weight.boundaries reach past the last of {self.epochs} epochs")
        return self

    @model_validator(mode="after")
    def _private_data(self) -> Experiment:
        without = [name for name, peer in self.peers.items() if peer.private is None]
        if without and len(without) < len(self.peers):
            raise ValueError(f"either every peer has private data or none; peers.{without[0]}.private is missing")
        if self.exchange.combine == "coverage" and any(p.coverage is None for p in self.peers.values()):
            raise ValueError('exchange.combine = "coverage" needs peers.NAME.covers of every peer')
        if self.baselines and without:
            raise ValueError("baselines are about private data, and no peer has any")
        known = all(p.private is not None and p.private.data is not None for p in self.peers.values())
        if "pooled" in self.baselines and not known:
            raise ValueError('baselines: "pooled" needs peers.NAME.private.data of every peer')
        return self

    @model_validator(mode="after")
    def _views(self) -> Experiment:
        without = [name for name, peer in self.peers.items() if peer.view is None]
        if without and len(without) < len(self.peers):
            raise ValueError(f"either every peer has a view or none; peers.{without[0]}.view is missing")
        if not without and self.private:
            raise ValueError("peers have views of shared samples, or private data; not both")
        if without and not self.exchange.data:
            raise ValueError("`exchange.data` is missing")
        return self

    @model_validator(mode="after")
    def _shared_processes(self) -> Experiment:
        if self.processes is not None and self.processes > len(self.peers):
            raise ValueError(f"processes = {self.processes} for only {len(self.peers)} peers")
        for share in self.shares:
            try:
                self.check_share(share)
            except ExperimentError as error:
                raise ValueError(f"processes = {self.processes}: {error}") from None
        return self

    @property
    def shares(self) -> list[tuple[str, ...]]:
        """The peers of each process, in the experiment's order, as many in each as can be."""
        names, number = self.peer_names, self.processes or len(self.peers)
        bounds = [len(names) * place // number for place in range(number + 1)]
        return [names[begin:end] for begin, end in pairwise(bounds)]

    def check_share(self, names: Sequence[str]) -> None:
        """Raise ExperimentError if these peers cannot be in one process, whose framework and device are chosen once."""
        first = names[0]
        for key in ("backend", "device", "memory", "threads"):
            mine = getattr(self.peers[first], key)
            for other in names[1:]:
                if (theirs := getattr(self.peers[other], key)) != mine:
                    raise ExperimentError(
                        f"{first} and {other} would be in one process, which has one {key}: order the peers so that "
                        "those of a process agree, or give each its own",
                        expected=str(mine),
                        got=str(theirs),
                    )

    @property
    def vertical(self) -> bool:
        """Whether the peers have different features of the same samples."""
        return any(peer.view is not None for peer in self.peers.values())

    @property
    def private(self) -> bool:
        """Whether the peers learn from private data, and exchange predictions on public, unlabelled data."""
        return any(peer.private is not None for peer in self.peers.values())

    def combination(self, peers: Sequence[str] | None = None) -> Combination:
        """How predictions of `peers`, in this order, are combined; of all of them if None."""
        exchange = self.exchange
        coverage: tuple[Classes, ...] = ()
        if exchange.combine == "coverage":
            coverage = tuple(self.peers[name].coverage or () for name in peers or self.peers)
        return Combination(exchange.combine, exchange.temperature, exchange.top_k, coverage)

    @model_validator(mode="after")
    def _placements_of_roles(self) -> Experiment:
        roles = [COORDINATOR, *self.peers]
        for name in self.ray:
            if name not in roles:
                raise ValueError(f"ray.{name} is nobody's placement; valid: {', '.join(roles)}")
        if COORDINATOR in self.ray and COORDINATOR in self.peers:
            raise ValueError("ray.coordinator could mean the coordinator, or the peer of that name: rename the peer")
        return self

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The peers' names in the experiment's order, which is the order of every combination and of the log."""
        return tuple(self.peers)

    def layout(self, samples: int) -> Layout:
        """How this experiment divides a data set of `samples` into batches."""
        return Layout(samples=samples, batch_size=self.batch_size, epochs=self.epochs)

    def peer_seed(self, peer: str) -> int:
        """The seed of one peer's initial weights and dropout: the experiment's, moved on by the peer's place."""
        return (self.seed * 1009 + self.peer_names.index(peer)) % 2**32


def parse(values: Mapping[str, Any], where: str) -> Experiment:
    """Check `values`, the tree of a TOML file, and make them an experiment.

    Args:
        values: nested tables as `tomllib` gives them.
        where: the file's name, for the message.

    Raises:
        ExperimentError: one line per fault; an unknown key comes with the nearest valid one.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        faults = [_fault(e["loc"], e["type"], e["msg"], e.get("input")) for e in error.errors()]
        raise ExperimentError(f"{where}: " + "\n  ".join(faults)) from None


_SCHEDULES: dict[str, type[BaseModel]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "piecewise": Piecewise,
}


def _fault(location: tuple[int | str, ...], kind: str, message: str, got: object) -> str:
    path = [str(part) for part in location]
    chosen = ""
    if path[:2] in (["exchange", "weight"], ["exchange", "shuffle"]) and len(path) > 2:
        chosen = path.pop(2)  # which of several models it was taken for; no key of the file
    key = ".".join(path)
    if kind == "extra_forbidden":
        valid = _valid_keys(path, chosen)
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else "valid: " + ", ".join(sorted(valid))
        return f"`{key}` is not known here; {hint}"
    if kind == "missing":
        return f"`{key}` is missing"
    if kind == "union_tag_not_found":
        return f"`{key}.schedule` is missing; valid: {', '.join(_SCHEDULES)}"
    if kind == "union_tag_invalid" and isinstance(got, dict):
        return f"`{key}.schedule`: no such schedule, got {got.get('schedule')!r}; valid: {', '.join(_SCHEDULES)}"
    shown = "" if kind == "value_error" or isinstance(got, dict) else f", got {got!r}"
    return f"`{key}`: {re.sub('^Value error, ', '', message)}{shown}" if key else re.sub("^Value error, ", "", message)


def _valid_keys(path: list[str], chosen: str) -> list[str]:
    """The keys that the table around `path` may have; `chosen` is the kind of a schedule."""
    match path[:-1]:
        case []:
            model: type[BaseModel] = Experiment
        case ["exchange"]:
            model = Exchange
        case ["exchange", "shuffle"]:
            model = ShuffleBuffer
        case ["exchange", "weight"]:
            model = _SCHEDULES[chosen]
        case ["exchange", "publish"]:
            model = Publication
        case ["peers", _, "private"]:
            model = Private
        case ["peers", _, "view"]:
            model = View
        case ["checkpoint"]:
            model = Checkpoint
        case ["ray", _]:
            model = Placement
        case _:
            model = Peer
    return list(model.model_fields)
