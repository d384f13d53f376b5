"""Runs with private data: what they compute, that killing costs nothing, and that what is private stays."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks import in_process
from entangled import datasets, experiment_file, private_data
from entangled.exchange_log import read
from entangled.schedule import weight_at
from examples.private_loop import entangle
from peer.models import build
from peer.private import PrivateBatches
from tests.faults.launched import until
from tests.faults.proxy import Proxy
from tests.integration.runs import ENTANGLED, assert_equal_to_the_bit, entangled

SMALL = [
    "epochs=2",
    "exchange.data=mnist[:320]",
    "exchange.lookahead=0",  # the loop in one process does not look ahead
    "exchange.weight={schedule='linear', start=0.5, end=3.0, per='step'}",
    "peers.cnn.private.samples=50",
    "peers.mlp.private={data='mnist[5000:]', classes=[4,5,6,7,8,9], samples=70, batch_size=24}",
]
PEERS = ("cnn", "mlp")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; not to be changed."""
    folder = tmp_path_factory.mktemp("private") / "run"
    done = entangled("run", "private-digits", *_sets(*SMALL), "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "alone" in done.stdout
    assert "pooled" in done.stdout
    return folder


def _sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_a_run_with_private_data_is_the_loop_in_one_process(run: Path) -> None:
    experiment = experiment_file.load(str(run / "experiment.toml"))
    public = private_data.public(experiment)
    layout = experiment.layout(len(public.x))
    rows = [row for row, _ in read(run)]
    assert len(rows) == 2 * layout.positions == 40
    own = [private_data.private(experiment, peer, 10) for peer in PEERS]
    assert [(len(d.x), set(d.y.tolist()) <= c) for d, c in zip(own, ({*range(6)}, {*range(4, 10)}), strict=True)] == [
        (50, True),
        (70, True),
    ]
    batches = [
        PrivateBatches(data, size, experiment.peer_seed(peer))
        for data, size, peer in zip(own, (32, 24), PEERS, strict=True)
    ]
    models = [build(experiment.peers[peer].model, (28, 28), 10, experiment.peer_seed(peer)) for peer in PEERS]
    steps = (
        (
            public.x[row.sample_ids],
            [b.batch(row.index) for b in batches],
            np.float32(weight_at(experiment.exchange.weight, row.position, layout)),
        )
        for row in rows[::2]
    )
    predictions: list[list[np.ndarray]] = []

    def seen(exchanged: list[np.ndarray]) -> list[np.ndarray]:
        predictions.append(exchanged)
        return exchanged

    optimizers = [keras.optimizers.Adam(0.001) for _ in models]
    losses = np.array(list(entangle(models, optimizers, steps, seen=seen)))
    for (a, b), row_a, row_b in zip(predictions, rows[::2], rows[1::2], strict=True):
        np.testing.assert_allclose(row_a.prediction, a, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row_b.prediction, b, rtol=0, atol=1e-5)
    for i, (peer, model) in enumerate(zip(PEERS, models, strict=True)):
        final = keras.models.load_model(run / "peers" / peer / "final.keras")
        for mine, oracle in zip(final.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(mine, oracle, rtol=0, atol=1e-5)
        lines = [json.loads(line) for line in (run / "peers" / peer / "metrics.jsonl").read_text().splitlines()]
        np.testing.assert_allclose([line["loss"] for line in lines], losses[:, i].reshape(2, -1).mean(1), atol=1e-4)
    summary = json.loads((run / "summary.json").read_text())["peers"]["cnn"]
    assert summary["alone_accuracy_7"] < 0.02
    assert set(summary) >= {"test_accuracy", "alone_accuracy", "pooled_accuracy", "test_accuracy_9"}


def test_a_study_in_one_process_has_the_figures_of_runs(run: Path) -> None:
    found = in_process.train(experiment_file.load(str(run / "experiment.toml")))
    summary = json.loads((run / "summary.json").read_text())["peers"]
    for peer in PEERS:
        assert set(found[peer]) >= {"test_accuracy", "alone_accuracy", "pooled_accuracy", "test_accuracy_9"}
        for name, value in found[peer].items():
            assert value == pytest.approx(summary[peer][name], abs=5e-4), (peer, name)


def test_different_features_are_joined_by_id_and_what_somebody_lacks_is_left_out(tmp_path: Path) -> None:
    mnist, order = datasets.load("mnist[:330]"), np.random.default_rng(0).permutation(330)
    for name, places, part in (("left", np.arange(320), slice(14)), ("right", order, slice(14, None))):
        np.savez(
            tmp_path / f"{name}.npz",
            ids=1000 + places,
            x_train=mnist.x[places][..., part],
            y_train=mnist.y[places],
            x_test=mnist.test_x[:500, :, part],
            y_test=mnist.test_y[:500],
        )
    views = [f"peers.{name}.view={{data='npz:{tmp_path}/{name}.npz'}}" for name in ("left", "right")]
    run = tmp_path / "run"
    done = entangled("run", "halves", *_sets("epochs=2", *views), "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    assert "peer left lacks 10 samples (1320, 1321," in (run / "coordinator.log").read_text()
    assert np.array_equal(np.load(run / "sample_ids.npy"), np.arange(1000, 1320))
    assert all(row.sample_ids.max() < 320 for row, _ in read(run))
    assert entangled("log", "verify", str(run)).returncode == 0
    replayed = entangled("replay", str(run), "right", "--run-dir", str(tmp_path / "replay"))
    assert "predictions: all 10 equal the logged ones to the bit" in replayed.stdout, replayed.stderr


def test_guarantee_6_killing_costs_nothing_and_a_replay_is_the_same(run: Path, tmp_path: Path) -> None:
    faults, again = tmp_path / "faults", tmp_path / "again"
    faults.mkdir()
    for name in ("cnn.before-update.7", "mlp.in-checkpoint.2"):
        (faults / name).touch()
    settings = [*SMALL, "checkpoint.steps=4"]
    done = entangled("run", "private-digits", *_sets(*settings), "--run-dir", str(again), faults=faults, seconds=300)
    assert done.returncode == 0, done.stderr
    assert list(faults.iterdir()) == []
    assert_equal_to_the_bit(run, again)
    one, other = (json.loads((r / "summary.json").read_text())["peers"] for r in (run, again))
    assert one == other
    replayed = entangled("replay", str(run), "mlp", "--run-dir", str(tmp_path / "replay"))
    assert replayed.returncode == 0, replayed.stderr
    assert "predictions: all 20 equal the logged ones to the bit" in replayed.stdout
    assert "final weights: equal to the bit" in replayed.stdout
    assert entangled("log", "verify", str(tmp_path / "replay")).returncode == 0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_guarantee_4_what_is_private_stays_with_the_peer(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    mnist = datasets.load("mnist[5000:5200]")
    for name in PEERS:
        np.savez(tmp_path / f"hospital-{name}.npz", x_train=mnist.x[:37], y_train=mnist.y[:37])
    np.savez(tmp_path / "public.npz", x_train=mnist.x[100:])
    overrides = [
        "epochs=1",
        f"exchange.data=npz:{tmp_path}/public.npz",
        "exchange.classes=10",
        "exchange.lookahead=0",
        "baselines=[]",
        *(f"peers.{name}.private={{}}" for name in PEERS),
    ]

    def begin(role: str, *arguments: str) -> None:
        command = [*ENTANGLED, *role.split(), *arguments, "--run-dir", str(tmp_path / role.replace(" ", "-"))]
        with (tmp_path / f"{role}.output").open("wb") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=output))

    socket = tmp_path / "coordinator.sock"
    begin("coordinator private-digits", *_sets(*overrides), "--listen", f"unix:{socket}")
    until(socket.exists, "the coordinator")
    with Proxy(str(socket)) as network:
        address = {"cnn": f"127.0.0.1:{network.port}", "mlp": f"unix:{socket}"}
        for name in PEERS:
            begin(f"peer {name}", "--coordinator", address[name], "--private", f"npz:{tmp_path}/hospital-{name}.npz")
        for process in started:
            assert process.wait(180) == 0, "\n".join(p.read_text() for p in tmp_path.glob("*.output"))
        sent = bytes(network.sent)

    assert sent.count(b"peer") or len(sent) > 100 * 10 * 4  # it did say something
    assert b"hospital" not in sent
    for image in mnist.x[:37]:
        assert image[10:18].tobytes() not in sent
    assert mnist.y[:37].tobytes() not in sent
    assert mnist.y[:37].astype(np.uint8).tobytes() not in sent
    kept = tmp_path / "coordinator-private-digits"
    for file in [p for p in kept.rglob("*") if p.is_file()]:
        assert b"hospital" not in file.read_bytes(), f"{file} names private data"
    replayed = entangled("replay", str(kept), "cnn", "--private", f"npz:{tmp_path}/hospital-cnn.npz", cwd=tmp_path)
    assert "predictions: all 4 equal the logged ones to the bit" in replayed.stdout, replayed.stderr


def test_why_private_data_cannot_be_used_is_nobody_elses_affair(tmp_path: Path) -> None:
    done = entangled(
        "run", "private-digits", *_sets(*SMALL, "baselines=[]", "peers.cnn.private={}"), "--run-dir", "x", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "cannot be used" in done.stderr or "peers.cnn.private names no data" in done.stderr
    assert "names no data" in (tmp_path / "x" / "peers" / "cnn" / "peer.log").read_text()
    assert "names no data" not in (tmp_path / "x" / "coordinator.log").read_text()
