"""The parts of an experiment that are about one peer, or one process: model, private data, device, place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Classes = tuple[Annotated[int, Field(ge=0)], ...]


class Settings(BaseModel):
    """A table of the experiment file: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimizer(BaseModel):
    """A Keras optimizer by name; further keys are its own arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "adam"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01


class Private(Settings):
    """A peer's own labelled data, which it takes its cross-entropy from and which never leaves it.

    What stands here, everybody can read. `{}` says that there is such data and that the peer itself knows where:
    `entangled peer NAME --private npz:PATH`. The rest makes experiments: peers that name the same `data` draw from it
    as from one shuffled deck, in the experiment's order, so that no sample is dealt twice (`splits.deal`).
    """

    data: str | None = None
    """As `exchange.data`, with labels."""
    classes: Classes | None = None
    """Only samples of these classes."""
    samples: Annotated[int, Field(gt=0)] | None = None
    """So many; without it, all that are left."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """The shares of the classes follow a Dirichlet(α) distribution; needs `samples`."""
    batch_size: Annotated[int, Field(gt=0)] | None = None
    """The experiment's, if not given."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Private:
        if self.data is None and (self.classes, self.samples, self.alpha) != (None, None, None):
            raise ValueError("classes, samples and alpha choose from `data`, which is not given")
        if self.alpha is not None and self.samples is None:
            raise ValueError("alpha needs `samples`: how many are drawn")
        return self


class View(Settings):
    """A peer's own features of samples that all peers have, joined by sample id.

    `{}` says that the peer itself knows where they are: `entangled peer NAME --view npz:PATH`.
    """

    data: str | None = None
    """As `exchange.data`, which it is if not given; an npz file has an array `ids` beside the others."""
    columns: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]] | None = None
    """Only the columns from the first number to before the second, of the last axis."""

    @model_validator(mode="after")
    def _in_order(self) -> View:
        if self.columns is not None and self.columns[0] >= self.columns[1]:
            raise ValueError("columns are [first, behind the last]")
        return self


class Peer(Settings):
    """One model and how it is trained."""

    model: str = ""
    """`cnn`, `mlp`, or `module:function`, a function of (input shape, classes) that returns a Keras model. Not given
    where the peer comes with a training loop of its own, by `entangled.join`."""
    optimizer: Optimizer = Optimizer()
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    """What Keras computes on. A peer that comes with a training loop of its own has no use for it."""
    compile: bool = False
    """On `torch`, compile the step with `torch.compile`; the others always do."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|gpu(:\d+)?)$")] = "auto"
    memory: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of the GPU's, so that several peers fit on one: a share of it up to 1, MiB above that. Not given, it grows with
    what is needed."""
    threads: Annotated[int, Field(ge=0)] = 1
    """CPU threads for one operation; 0 leaves it to the framework. One is fastest for small models, and the results'
    last bits depend on it."""
    private: Private | None = None
    view: View | None = None
    covers: Classes | None = None
    """The classes that this peer announces to have labels for; those of its private data where they stand here."""

    @model_validator(mode="after")
    def _compiled(self) -> Peer:
        if self.compile and self.backend != "torch":
            raise ValueError(f'compile says something only with backend = "torch"; "{self.backend}" always compiles')
        return self

    @property
    def coverage(self) -> Classes | None:
        """The announced classes, or None."""
        return self.private.classes if self.covers is None and self.private is not None else self.covers


class Placement(Settings):
    """Where one role runs on a Ray cluster. Nothing that the two sides must agree on: no part of a run's experiment."""

    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Not given, a peer's `threads`, one at least; none for the coordinator, which mostly waits."""
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Not given, what the peer's `device` and `memory` ask for."""
    resources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """What the cluster's nodes were started with, by their own names."""
    node: str | None = None
    """The address of the node that it must run on. Not given, peers are spread; the coordinator is on the head."""


COORDINATOR = "coordinator"
"""The coordinator's name among the placements."""


class Checkpoint(Settings):
    """When a peer writes a checkpoint, beside the end of each epoch."""

    seconds: Annotated[float, Field(gt=0)] = 60.0
    """At least this often."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Every so many steps."""
