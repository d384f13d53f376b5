"""Where two ways to the others meet: a coordinator's process over gRPC, and the session alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from entangled import grpc_settings
from entangled.experiment import Experiment
from entangled.participation.seam import Exchange

grpc_settings.apply()

from coordinator.doors import Lock  # noqa: E402
from entangled.participation.client import CoordinatorClient  # noqa: E402
from entangled.participation.link import Link  # noqa: E402
from tests.contract.processes import DEADLINE, LiveCoordinator  # noqa: E402
from tests.fakes import InMemoryCoordinator  # noqa: E402

Meet = Callable[[Experiment], Callable[[str], Exchange]]


class Coordinate(Protocol):
    """Starts a coordinator."""

    def __call__(
        self, experiment: Experiment, limit: int | None = None, lock: Lock | None = None, address: str = ""
    ) -> LiveCoordinator: ...


@pytest.fixture
def coordinate() -> Iterator[Coordinate]:
    """Starts coordinators, and ends them after the test."""
    with contextlib.ExitStack() as open_things:

        def start(
            experiment: Experiment, limit: int | None = None, lock: Lock | None = None, address: str = ""
        ) -> LiveCoordinator:
            folder = open_things.enter_context(tempfile.TemporaryDirectory(prefix="entangled-test-"))
            live = LiveCoordinator(experiment, Path(folder), limit, lock, address)
            open_things.callback(live.close)
            return live

        yield start


@pytest.fixture(params=["memory", "grpc", "one stream"])
def meet(
    request: pytest.FixtureRequest, coordinate: Coordinate
) -> Iterator[Callable[[Experiment], Callable[[str], Exchange]]]:
    """Begins a run of an experiment; gives what makes a new peer's way to the others, by its name.

    Over memory, over gRPC from a process of its own, and over one stream that all of them share.
    """

    def begin(experiment: Experiment) -> Callable[[str], Exchange]:
        if request.param == "memory":
            return InMemoryCoordinator(experiment).peer
        live = coordinate(experiment)
        if request.param == "grpc":
            return live.peer
        link = Link(live.address, DEADLINE, several=True)
        links.callback(link.close)
        return lambda name: CoordinatorClient(live.address, name, link=link)

    with contextlib.ExitStack() as links:
        yield begin
