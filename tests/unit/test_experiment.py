"""The experiment file: what is refused and in which words, overrides, and what is shipped."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from entangled.alignment import Layout
from entangled.errors import ExperimentError
from entangled.experiment_file import dumps, dumps_placement, load, loads, shipped
from entangled.schedule import Linear

TEXT = """
name = "test"
epochs = 3
batch_size = 4
[exchange]
data = "mnist"
[peers.a]
model = "cnn"
[peers.linear]
model = "mlp"
"""


def refusal(*overrides: str) -> str:
    with pytest.raises(ExperimentError) as refused:
        loads(TEXT, "test.toml", overrides)
    message = str(refused.value)
    assert message.startswith(("test.toml: ", "--set", "cannot understand --set"))
    return message.removeprefix("test.toml: ")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epoch=3", "`epoch` is not known here; did you mean `epochs`?"),
        ("exchange.dat=x", "`exchange.dat` is not known here; did you mean `data`?"),
        ("exchange.shuffle={buffer=3, bufer=3}", "`exchange.shuffle.bufer` is not known here; did you mean `buffer`?"),
        (
            "exchange.weight={schedule='linear', end=1, stat=0}",
            "`exchange.weight.stat` is not known here; did you mean",
        ),
        ("peers.a.modle=x", "`peers.a.modle` is not known here; did you mean `model`?"),
        ("exchange.publish.decimal=1", "`exchange.publish.decimal` is not known here; did you mean `decimals`?"),
        ("peers.a.private.class=[1]", "`peers.a.private.class` is not known here; did you mean `classes`?"),
        ("peers.linear.treads=1", "`peers.linear.treads` is not known here; did you mean `threads`?"),
        (
            "xyzzy=1",
            "`xyzzy` is not known here; valid: baselines, batch_size, checkpoint, description, epochs, exchange, ",
        ),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_with_the_nearest_valid_one(override: str, words: str) -> None:
    assert refusal(override).startswith(words)


def test_a_key_of_another_schedule_is_not_offered_for_itself() -> None:
    message = refusal("exchange.weight={schedule='constant', value=0.1, start=0}")
    assert message == "`exchange.weight.start` is not known here; valid: schedule, value"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs=0", "`epochs`: Input should be greater than 0, got 0"),
        ("batch_size=many", "`batch_size`: Input should be a valid integer"),
        ("seed=-1", "`seed`: Input should be greater than or equal to 0, got -1"),
        ("name='../x'", "`name`: String should match pattern"),
        ("exchange=1", "`exchange`: Input should be a valid dictionary"),
        ("exchange.direction=both", "`exchange.direction`: Input should be 'self_other' or 'other_self', got 'both'"),
        ("exchange.patience=0", "`exchange.patience`: Input should be greater than 0, got 0"),
        ("exchange.log=some", "`exchange.log`: Input should be 'full', 'sampled' or 'statistics', got 'some'"),
        ("exchange={data='x', log='sampled', log_every=0}", "`exchange.log_every`: Input should be greater than 0"),
        ("exchange.log_every=5", '`exchange`: exchange.log_every says something only with exchange.log = "sampled"'),
        ("exchange.combine=vote", "`exchange.combine`: Input should be 'mean', 'geometric', 'confidence'"),
        ("exchange.combine=coverage", 'exchange.combine = "coverage" needs peers.NAME.covers of every peer'),
        ("exchange.temperature=0", "`exchange.temperature`: Input should be greater than or equal to 0.01, got 0"),
        ("exchange.publish={top_k=0}", "`exchange.publish.top_k`: Input should be greater than 0, got 0"),
        ("exchange.classes=1", "`exchange.classes`: Input should be greater than or equal to 2, got 1"),
        ("peers.a.private={}", "either every peer has private data or none; peers.linear.private is missing"),
        ("baselines=['alone']", "baselines are about private data, and no peer has any"),
        ("peers.a.private.samples=5", "`peers.a.private`: classes, samples and alpha choose from `data`"),
        ("peers.a.private={data='mnist', alpha=0.1}", "`peers.a.private`: alpha needs `samples`"),
        ("exchange.on_missing=stop", "`exchange.on_missing`: Input should be 'wait' or 'continue', got 'stop'"),
        ("exchange.min_peers=1", '`exchange`: exchange.min_peers says something only with exchange.on_missing = "cont'),
        ("exchange.missing_after=9", "`exchange`: exchange.missing_after says something only with"),
        ("exchange={data='x', on_missing='continue', min_peers=0}", "`exchange.min_peers`: Input should be greater"),
        ("exchange={data='x', on_missing='continue', min_peers=9}", "exchange.min_peers = 9 of only 2 peers: no exch"),
        (
            "exchange={data='x', on_missing='continue', patience=60}",
            "`exchange`: exchange.missing_after = 60 must be less than exchange.patience = 60, or the run",
        ),
        ("exchange.patience=inf", "`exchange.patience`: Input should be a finite number"),
        ("exchange.shuffle=ful", "`exchange.shuffle`: Input should be 'full' or 'none', got 'ful'"),
        ("exchange.shuffle={buffer=0}", "`exchange.shuffle.buffer`: Input should be greater than 0, got 0"),
        ("exchange.shuffle={}", "`exchange.shuffle.buffer` is missing"),
        ("exchange.weight=0.1", "`exchange.weight`: "),
        ("exchange.weight={end=1}", "`exchange.weight.schedule` is missing; valid: constant, linear, cosine"),
        ("exchange.weight.schedule=lin", "`exchange.weight.schedule`: no such schedule, got 'lin'; valid: constant"),
        ("exchange.weight={schedule='linear'}", "`exchange.weight.end` is missing"),
        ("exchange.weight={schedule='linear', end=-1}", "`exchange.weight.end`: Input should be greater than or equal"),
        (
            "exchange.weight={schedule='piecewise', boundaries=[3], values=[0, 1]}",
            "exchange.weight.boundaries reach past the last of 3 epochs",
        ),
        (
            "exchange.weight={schedule='piecewise', boundaries=[1], values=[0]}",
            "`exchange.weight`: 1 boundaries need 2 values",
        ),
        ("peers={a={model='cnn'}}", "`peers`: an experiment needs at least two peers"),
        ("peers={}", "`peers`: an experiment needs at least two peers"),
        ("peers.a.compile=true", '`peers.a`: compile says something only with backend = "torch"'),
        ("peers.a.backend=theano", "`peers.a.backend`: Input should be"),
        ("peers.a.device=tpu", "`peers.a.device`: String should match pattern"),
        ("peers.a.optimizer.learning_rate=0", "`peers.a.optimizer.learning_rate`: Input should be greater than 0"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(override: str, words: str) -> None:
    message = refusal(override)
    assert message.startswith(words)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ([], [0, 1, 2, 99, 100, 101, 200]),
        (["exchange.log=sampled"], [0, 100, 200]),
        (["exchange.log=sampled", "exchange.log_every=2"], [0, 2, 100, 200]),
        (["exchange.log=statistics"], []),
    ],
)
def test_the_log_keeps_what_the_experiment_says(overrides: list[str], kept: list[int]) -> None:
    value = load("smoke", overrides)
    assert [index for index in (0, 1, 2, 99, 100, 101, 200) if value.exchange.keeps(index)] == kept
    assert loads(dumps(value), "again") == value


def test_every_fault_is_told_at_once() -> None:
    lines = refusal("epochs=0", "sede=1", "peers.a.device=tpu").splitlines()
    assert len(lines) == 3
    assert "did you mean `seed`" in "".join(lines)


def test_overrides_reach_every_key_by_dots() -> None:
    changed = loads(
        TEXT,
        "test.toml",
        [
            "epochs=5",
            "exchange.data=mnist[:500]",
            "exchange.shuffle=none",
            "exchange.weight={schedule='linear', end=0.1}",
            "exchange.weight.end=0.2",
            "peers.a.optimizer.learning_rate=0.5",
            "peers.a.optimizer.momentum=0.9",
            "peers.a.model='my.module:model'",
            "peers.c.model=mlp",
        ],
    )
    assert changed.epochs == 5
    assert changed.exchange.data == "mnist[:500]"
    assert changed.exchange.shuffle_buffer == "none"
    assert changed.exchange.weight == Linear(schedule="linear", end=0.2)
    assert changed.peers["a"].optimizer.model_dump() == {"name": "adam", "learning_rate": 0.5, "momentum": 0.9}
    assert changed.peers["a"].model == "my.module:model"
    assert changed.peer_names == ("a", "linear", "c")


@pytest.mark.parametrize("override", ["epochs", "=5", "epochs.x=1", ""])
def test_an_override_that_makes_no_sense_is_refused(override: str) -> None:
    assert "--set" in refusal(override)


PRIVATE = ["peers.a.private={data='mnist', classes=[0, 1], samples=5}", "peers.linear.private={}"]


def test_private_data_is_kept_by_dumps_and_announces_its_classes() -> None:
    value = loads(TEXT, "test.toml", [*PRIVATE, "peers.linear.covers=[2]", "exchange.combine=coverage"])
    assert value.private
    assert value.combination().coverage == ((0, 1), (2,))
    assert value.combination(["linear"]).coverage == ((2,),)
    assert loads(dumps(value), "again") == value
    assert "pooled" in refusal(*PRIVATE, "baselines=['pooled']")
    assert not loads(TEXT, "test.toml").private


def test_dumps_writes_every_default_and_loads_gives_back_an_equal_one() -> None:
    value = loads(TEXT, "test.toml", ["exchange.shuffle={buffer=7}", "peers.a.optimizer.beta_1=0.5"])
    text = dumps(value)
    assert loads(text, "again") == value
    assert dumps(loads(text, "again")) == text
    tree = tomllib.loads(text)
    assert tree["seed"] == 0
    assert tree["exchange"]["patience"] == value.exchange.patience
    assert list(tree["peers"]) == ["a", "linear"]
    assert set(tree["peers"]["a"]) == {"model", "optimizer", "backend", "compile", "device", "threads"}


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        loads(TEXT, "test.toml").epochs = 4


def test_peers_have_seeds_of_their_own_that_follow_the_experiments() -> None:
    seeds = [
        loads(TEXT, "test.toml", [f"seed={seed}"]).peer_seed(peer)
        for seed in (0, 1, 2**32 - 1)
        for peer in ("a", "linear")
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_layout_is_the_experiments() -> None:
    assert loads(TEXT, "test.toml").layout(10) == Layout(samples=10, batch_size=4, epochs=3)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_experiment_loads_under_its_own_name(name: str) -> None:
    value = load(name)
    assert value.name == name
    assert value.description
    assert len(value.description.splitlines()) == 1


@pytest.mark.parametrize("name", ["mnist", "notebook", "smoke"])
def test_the_shipped_recipes_are_the_notebooks(name: str) -> None:
    value = load(name)
    assert {value.peers[p].model for p in ("cnn", "mlp")} == {"cnn", "mlp"}
    assert value.exchange.direction == "self_other"
    assert value.exchange.shuffle_buffer == ("full" if name == "mnist" else 100)
    assert value.exchange.weight == Linear(schedule="linear", start=0.0, end=0.05, per="epoch")
    assert all(p.optimizer.model_dump() == {"name": "adam", "learning_rate": 0.01} for p in value.peers.values())


def test_what_is_shipped_is_what_the_owner_asked_for() -> None:
    assert {name: (load(name).epochs, load(name).batch_size) for name in ("mnist", "notebook")} == {
        "mnist": (30, 128),
        "notebook": (30, 8),
    }
    assert "smoke" in shipped()


def test_files_are_found_and_faults_in_them_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(TEXT)
    Path("mnist").mkdir()  # a folder of that name is no experiment file
    Path("torn.toml").write_text("name = ")
    Path("bytes.toml").write_bytes(b"name = '\xff'")
    assert load("my.toml", ["epochs=9"]).epochs == 9
    assert load("mnist").name == "mnist"
    for name, words in [
        ("nowhere.toml", "cannot read nowhere.toml: No such file"),
        ("torn.toml", "torn.toml is not TOML"),
        ("bytes.toml", "bytes.toml is not TOML"),
        ("minst", "no experiment `minst`: give a .toml file, or one of: .*mnist"),
    ]:
        with pytest.raises(ExperimentError, match=words):
            load(name)


RAY = ["ray.cnn.num_gpus=0.5", "ray.cnn.resources={big=1}", "ray.coordinator.node='10.0.0.1'"]


def test_placements_are_no_part_of_what_the_sides_agree_on() -> None:
    placed, plain = load("smoke", RAY), load("smoke")
    assert dumps(placed) == dumps(plain)
    assert loads(dumps(placed) + dumps_placement(placed), "both") == placed
    assert dumps_placement(plain) == ""
    assert placed.ray["cnn"].num_gpus == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ray.cn.num_gpus=1"], "ray.cn is nobody's placement; valid: coordinator, cnn, mlp"),
        (["ray.cnn.gpus=1"], "did you mean `num_gpus`?"),
        (["ray.cnn.num_cpus=-1"], "ray.cnn.num_cpus"),
        (["peers.coordinator.model=mlp", "ray.coordinator.num_cpus=1"], "rename the peer"),
    ],
)
def test_a_placement_that_makes_no_sense_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(words)):
        load("smoke", overrides)


@pytest.mark.parametrize("memory", ["0", "-1", "inf", "much"])
def test_memory_is_a_share_or_mib(memory: str) -> None:
    with pytest.raises(ExperimentError, match=r"peers\.cnn\.memory"):
        load("smoke", [f"peers.cnn.memory={memory}"])
    assert load("smoke", ["peers.cnn.memory=0.5"]).peers["cnn"].memory == 0.5


@pytest.mark.parametrize(
    ("processes", "shares"),
    [(1, [("a", "linear", "c")]), (2, [("a",), ("linear", "c")]), (3, [("a",), ("linear",), ("c",)])],
)
def test_the_peers_of_each_process_are_neighbours(processes: int, shares: list[tuple[str, ...]]) -> None:
    third = "[peers.c]\nmodel = 'mlp'\n"
    assert loads(TEXT + third, "test.toml", [f"processes={processes}"]).shares == shares
    assert loads(TEXT + third, "test.toml").shares == [("a",), ("linear",), ("c",)]


def test_peers_of_a_process_have_its_framework_and_device() -> None:
    assert refusal("processes=3") == "processes = 3 for only 2 peers"
    words = refusal("processes=1", "peers.a.backend=jax")
    assert words.startswith("processes = 1: a and linear would be in one process, which has one backend: order the ")
    assert words.endswith("(expected jax; got tensorflow)")
    assert "which has one device" in refusal("processes=1", "peers.linear.device=gpu:1")
    assert loads(TEXT, "test.toml", ["processes=2", "peers.a.backend=jax"]).shares == [("a",), ("linear",)]
