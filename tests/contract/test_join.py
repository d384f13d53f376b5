"""What `entangled.join` promises to anybody's training loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entangled
from entangled.alignment import sample_order
from entangled.errors import DataError, MembershipError, PredictionError, ProtocolError, RunFailedError
from entangled.experiment import Experiment
from entangled.experiment_parts import Checkpoint
from entangled.participation.arrays import as_probabilities
from entangled.participation.data import described
from entangled.participation.peer import Peer
from tests.contract.processes import DEADLINE, FORKS
from tests.fakes import InMemoryCoordinator
from tests.support import CLASSES, SAMPLES, data, experiment, prediction

RUN = "run"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def peer(coordinator: InMemoryCoordinator, name: str) -> Peer:
    return Peer(coordinator.peer(name), coordinator.session.experiment, name, RUN, data())


def whole_run(coordinator: InMemoryCoordinator, name: str) -> list[Any]:
    with peer(coordinator, name) as joined:
        return [batch.exchange(prediction(name, batch.position, len(batch))) for batch in joined]


def keeping(steps: int) -> Experiment:
    return experiment(epochs=4).model_copy(update={"checkpoint": Checkpoint(steps=steps)})


class Interrupted(BaseException):
    """What Ctrl-C is like."""


def test_a_loop_gets_every_batch_in_the_coordinators_order_and_a_target_for_each(pool: ThreadPoolExecutor) -> None:
    settings = experiment(epochs=2)
    coordinator = InMemoryCoordinator(settings)
    other = pool.submit(whole_run, coordinator, "b")
    seen: list[np.ndarray] = []
    with peer(coordinator, "a") as joined:
        for batch in joined:
            seen.append(batch.ids)
            target = batch.exchange(prediction("a", batch.position, len(batch)).astype(np.float64))
            assert target.probabilities.tobytes() == prediction("b", batch.position, len(batch)).tobytes()
            assert target.weight == batch.epoch / 2
            batch.report(loss=np.float32(batch.step), error=0.5)
    assert [len(ids) for ids in seen] == [4, 4, 2] * 2
    for epoch in range(2):
        order = sample_order(np.arange(SAMPLES), 100, settings.seed, epoch)
        assert np.concatenate(seen[3 * epoch : 3 * epoch + 3]).tolist() == order.tolist()
    assert len(other.result(DEADLINE)) == 6
    assert coordinator.session.over
    assert coordinator.session.members["a"].final == {"train_loss": 2.0, "error": 0.5}


def test_there_is_time_between_submitting_and_the_result(pool: ThreadPoolExecutor) -> None:
    coordinator = InMemoryCoordinator(experiment(epochs=1))
    with peer(coordinator, "a") as a, peer(coordinator, "b") as b:
        for one, two in zip(a, b, strict=True):
            one.submit(prediction("a", one.position, len(one)))
            assert two.exchange(prediction("b", two.position, len(two))).weight == 0.0
            assert one.result().probabilities.tobytes() == prediction("b", one.position, len(one)).tobytes()
        a.finish(test_loss=0.25)
    assert coordinator.session.members["a"].final == {"test_loss": 0.25}


class Loop:
    """A loop whose every number depends on all before it, and which keeps its state as the experiment says."""

    def __init__(self, coordinator: InMemoryCoordinator, folder: Path) -> None:
        self.weights = np.zeros(CLASSES)
        self.random = np.random.default_rng(0)
        self.joined = peer(coordinator, "a")
        self.restored = self.joined.keep(folder, self.state, self.restore)

    def state(self) -> Any:
        return {"weights": self.weights, "random": self.random.bit_generator.state, "note": b"\0x", ("t", 1): [None, 2]}

    def restore(self, state: Any) -> None:
        assert (state["note"], state["t", 1]) == (b"\0x", [None, 2])
        self.weights, self.random.bit_generator.state = state["weights"], state["random"]

    def run(self, until: int | None = None) -> np.ndarray:
        with self.joined:
            for done, batch in enumerate(self.joined):
                if done == until:
                    raise Interrupted
                p = np.exp(self.weights + self.random.normal(size=(len(batch), CLASSES)))
                target = batch.exchange(p / p.sum(axis=1, keepdims=True))
                self.weights = self.weights + target.probabilities.sum(axis=0) + self.random.normal()
        return self.weights


def test_guarantee_6_a_loop_that_keeps_its_state_loses_nothing(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    settings = experiment(epochs=4).model_copy(
        update={"checkpoint": experiment().checkpoint.model_copy(update={"steps": 2})}
    )
    ends: list[bytes] = []
    for name, stops in (("undisturbed", ()), ("disturbed", (1, 4, 5, 0))):
        coordinator = InMemoryCoordinator(settings)
        other = pool.submit(whole_run, coordinator, "b")
        for number, stop in enumerate(stops):
            loop = Loop(coordinator, tmp_path / name)
            assert loop.restored == (number > 1)  # nothing is kept before the second batch
            with pytest.raises(Interrupted):
                loop.run(stop)
        ends.append(Loop(coordinator, tmp_path / name).run().tobytes())
        other.result(DEADLINE)
    assert ends[0] == ends[1]


def test_a_checkpoint_is_taken_before_what_still_waits_for_its_result(tmp_path: Path) -> None:
    settings = experiment(epochs=4).model_copy(
        update={"checkpoint": experiment().checkpoint.model_copy(update={"steps": 1})}
    )
    coordinator = InMemoryCoordinator(settings)
    a, b = peer(coordinator, "a"), peer(coordinator, "b")
    a.keep(tmp_path, lambda: "state", lambda _: None)
    for _ in range(2):
        batch, theirs = next(a), next(b)
        batch.submit(prediction("a", batch.position, 4))
        theirs.exchange(prediction("b", theirs.position, 4))
        if batch.step == 0:
            batch.result()
    next(a)
    assert [path.stem for path in tmp_path.iterdir()] == [f"{1:012d}"]


def test_leaving_on_an_exception_tells_everybody_why(pool: ThreadPoolExecutor) -> None:
    coordinator = InMemoryCoordinator(experiment())
    other = pool.submit(whole_run, coordinator, "b")
    with pytest.raises(ZeroDivisionError), peer(coordinator, "a"):
        raise ZeroDivisionError("no samples")
    with pytest.raises(RunFailedError, match="peer a failed: ZeroDivisionError: no samples"):
        other.result(DEADLINE)


def test_a_loop_that_ends_too_early_has_failed(pool: ThreadPoolExecutor) -> None:
    coordinator = InMemoryCoordinator(experiment())
    other = pool.submit(whole_run, coordinator, "b")
    with peer(coordinator, "a") as joined:
        next(joined).exchange(prediction("a", (0, 0), 4))
        with pytest.raises(ProtocolError, match="ended before epoch 0 step 1"):
            joined.finish()
    with pytest.raises(RunFailedError, match="peer a failed: the training loop ended before epoch 0 step 1"):
        other.result(DEADLINE)


def test_mistakes_are_told_at_once_and_cost_nothing() -> None:
    coordinator = InMemoryCoordinator(experiment())
    a = peer(coordinator, "a")
    first, second = next(a), next(a)
    with pytest.raises(ProtocolError, match=r"in order \(expected epoch 0 step 0; got epoch 0 step 1\)"):
        second.submit(prediction("a", second.position, 4))
    for bad in (np.full((4, 2), 0.5), np.full((4, CLASSES), 0.5), np.full((4, CLASSES), np.nan), [["a"] * 3] * 4):
        with pytest.raises(PredictionError):
            first.submit(bad)
    first.submit(prediction("a", first.position, 4))
    with pytest.raises(ProtocolError, match="once, in order"):
        first.submit(prediction("a", first.position, 4))
    with pytest.raises(ProtocolError, match="before the first batch"):
        a.keep("nowhere", dict, print)


class Tensor:
    """A tensor of a framework that gives no array while it has a gradient."""

    requires_grad = True

    def detach(self) -> Tensor:
        self.requires_grad = False
        return self

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert not self.requires_grad
        return np.eye(2)


class Exported:
    """An array that speaks DLPack alone."""

    def __dlpack__(self, **arguments: Any) -> Any:
        return np.eye(2).__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return np.eye(2).__dlpack_device__()


@pytest.mark.parametrize("value", [np.eye(2, dtype=np.float16), [[1, 0], [0, 1]], Tensor(), Exported()])
def test_a_prediction_may_be_anybodys_array(value: Any) -> None:
    found = as_probabilities(value)
    assert (found.dtype, found.tolist()) == (np.float32, [[1.0, 0.0], [0.0, 1.0]])


def test_a_data_set_may_be_its_ids() -> None:
    assert described(10, 3) == described(np.arange(10), 3) == described(list(range(10)), 3)
    with pytest.raises(DataError, match="how many classes"):
        described(10, None)
    with pytest.raises(DataError, match="no data set"):
        described("mnist", 3)


def test_importing_entangled_loads_nothing_and_joining_no_framework() -> None:
    check = (
        "import sys, entangled; light = set(sys.modules); entangled.join, entangled.Peer;"
        "print(any(m in light for m in ('numpy', 'grpc', 'pydantic')),"
        "      any(m in sys.modules for m in ('tensorflow', 'keras', 'torch', 'jax', 'coordinator', 'peer')))"
    )
    done = subprocess.run([sys.executable, "-c", check], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="nothing"):
        entangled.nothing  # noqa: B018


# ---- over the network, in processes of their own


def _blocking(outcome: Connection, address: str, name: str) -> None:
    try:
        with entangled.join(address, name, data=SAMPLES, classes=CLASSES, connect_seconds=DEADLINE) as joined:
            for batch in joined:
                batch.exchange(prediction(name, batch.position, len(batch)))
                batch.report(loss=1.5)
        outcome.send(None)
    except Exception as error:
        outcome.send(error)


def _asynchronous(outcome: Connection, address: str, name: str) -> None:
    async def loop() -> None:
        async with entangled.join_async(
            address, name, data=SAMPLES, classes=CLASSES, connect_seconds=DEADLINE
        ) as joined:
            async for batch in joined:
                await batch.submit(prediction(name, batch.position, len(batch)))
                await asyncio.sleep(0)
                await batch.result()
                await batch.report(loss=2.5)
                if joined.experiment.description == "break" and batch.epoch == 1:
                    raise ZeroDivisionError("told from a task")

    try:
        asyncio.run(loop())
        outcome.send(None)
    except Exception as error:
        outcome.send(error)


def run(coordinate: Any, settings: Experiment, *loops: tuple[Callable[..., None], str]) -> tuple[Any, list[Any]]:
    live = coordinate(settings)
    pipes: list[Connection] = []
    for loop, name in loops:
        ours, theirs = FORKS.Pipe(duplex=False)
        FORKS.Process(target=loop, args=(theirs, live.address, name), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.poll(DEADLINE)
    return live.ended(), [pipe.recv() for pipe in pipes]


def test_a_blocking_and_an_asynchronous_loop_meet(coordinate: Any) -> None:
    assert run(coordinate, experiment(), (_blocking, "a"), (_asynchronous, "b")) == (None, [None, None])


def test_an_error_within_a_task_reaches_everybody(coordinate: Any) -> None:
    settings = experiment().model_copy(update={"description": "break"})
    ended, errors = run(coordinate, settings, (_blocking, "a"), (_asynchronous, "b"))
    assert isinstance(errors[1], ZeroDivisionError)
    for error in (ended, errors[0]):
        assert isinstance(error, RunFailedError)
        assert "peer b failed: ZeroDivisionError: told from a task" in str(error)


def test_a_stranger_is_told_who_may_join(coordinate: Any) -> None:
    live = coordinate(experiment())
    ours, theirs = FORKS.Pipe(duplex=False)
    FORKS.Process(target=_blocking, args=(theirs, live.address, "z"), daemon=True).start()
    assert ours.poll(DEADLINE)
    error = ours.recv()
    assert isinstance(error, MembershipError)
    assert error.expected == "a or b"
