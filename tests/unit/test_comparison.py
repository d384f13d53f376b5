"""Figures of several seeds: intervals, paired differences, and how runs are put together."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

from entangled.comparison import Setting, interval, paired, rows, shown
from entangled.errors import EntangledError, RunFailedError
from entangled.experiment_file import dumps, load
from entangled.launch.study import axis, differing, jobs, perform, plan, settings
from tests.command_line import RUNNER

ACCURACY = {0: 0.80, 1: 0.82, 2: 0.84, 3: 0.86, 4: 0.88}


def setting(label: str, shift: float = 0.0) -> Setting:
    return Setting(label, f"runs/{label}", {s: {"a": {"test_accuracy": v + shift}} for s, v in ACCURACY.items()})


def test_an_interval_is_students() -> None:
    found = interval(list(ACCURACY.values()))
    assert found.mean == pytest.approx(0.84)
    assert found.reach == pytest.approx(2.776 * math.sqrt(0.001 / 5), rel=1e-3)
    assert math.isnan(interval([0.5]).reach)
    many = interval([0.0, 1.0] * 50)
    assert many.reach == pytest.approx(1.984 * math.sqrt(25 / 99 / 100), rel=1e-3)


def test_a_paired_difference_sees_what_all_seeds_share() -> None:
    difference = paired(ACCURACY, {seed: value + 0.01 for seed, value in ACCURACY.items() if seed != 2} | {9: 0.0})
    assert difference is not None
    assert (difference.count, round(difference.mean, 6)) == (4, 0.01)
    assert difference.reach < 1e-9 < interval(list(ACCURACY.values())).reach
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_rows_compare_with_the_first_setting_and_name_their_runs() -> None:
    one, two = rows([setting("one"), setting("two", 0.05)], "test_accuracy")
    assert (one["setting"], one["peer"], one["difference_mean"]) == ("one", "a", None)
    assert two["difference_mean"] == pytest.approx(0.05)
    assert two["runs"] == "runs/two"
    assert two["seeds"] == [0, 1, 2, 3, 4]
    assert rows([setting("one")], "alone_accuracy") == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1,2", ("1", "2")),
        ("a={b=1, c=2},none", ("{b=1, c=2}", "none")),
        ("a=[1,2],[3]", ("[1,2]", "[3]")),
        ("a='x,y',z", ("'x,y'", "z")),
    ],
)
def test_values_are_told_apart_at_the_outer_commas(text: str, values: tuple[str, ...]) -> None:
    assert axis(text) == ("a", values)


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,2"])
def test_a_key_without_values_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="cannot understand --vary"):
        axis(text)


def test_a_plan_has_every_combination_with_the_same_seeds_in_folders_of_their_own() -> None:
    axes = [axis("exchange.weight.end=0,0.5"), axis("exchange.direction=self_other,other_self")]
    cells = plan("smoke", ["epochs=1", "seed=7"], axes, 3, Path("x"))
    assert len(cells) == len({cell.folder for cell in cells}) == 12
    assert [cell.seed for cell in cells] == [7] * 4 + [8] * 4 + [9] * 4
    assert cells[5].label == "exchange.weight.end=0 exchange.direction=other_self"
    assert cells[5].experiment == load(
        "smoke", ["epochs=1", "seed=8", "exchange.weight.end=0", "exchange.direction=other_self"]
    )
    assert plan("smoke", [], [], 1, Path("x"))[0].label == "as it is"
    assert jobs(cells[0].experiment) >= 1


def test_settings_that_look_alike_in_a_name_have_folders_of_their_own() -> None:
    """They shared one, and the second's figures were the first's."""
    pair = axis("exchange.data=npz:/x/a.npz,npz:/x_a.npz")
    long = axis(f"peers.cnn.model=m:{'x' * 120}a,m:{'x' * 120}b")
    for axes in ([pair], [long]):
        names = {cell.folder.parent.name for cell in plan("smoke", [], axes, 2, Path("x"))}
        assert len(names) == 2
        assert all(len(name) <= 120 for name in names)
        assert names == {cell.folder.parent.name for cell in plan("smoke", [], axes, 1, Path("x"))}


def test_what_differs_is_named_and_the_seed_is_not() -> None:
    experiments = [load("smoke", o) for o in (["seed=1"], ["seed=2"], ["exchange.combine=geometric"])]
    assert differing(experiments) == ["exchange.combine=mean"] * 2 + ["exchange.combine=geometric"]
    assert differing(experiments[:2]) == ["", ""]


def finished(folder: Path, accuracy: float, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(dumps(load("smoke", overrides)), "utf-8")
    peers = {name: {"test_accuracy": accuracy, "agreement": 0.5} for name in ("cnn", "mlp")}
    (folder / "summary.json").write_text(json.dumps({"peers": peers}), "utf-8")
    return folder


def test_compare_puts_seeds_together_and_prints_differences(tmp_path: Path) -> None:
    from entangled.cli.main import app

    runs = [
        finished(tmp_path / f"{end}-{seed}", 0.8 + end + seed / 100, f"exchange.weight.end={end}", f"seed={seed}")
        for end in (0.0, 0.1)
        for seed in (0, 1)
    ]
    done = RUNNER.invoke(app, ["compare", *map(str, runs), "--json"])
    assert done.exit_code == 0, done.output
    table = [row for row in json.loads(done.stdout) if row["metric"] == "test_accuracy"]
    assert [(row["setting"], row["peer"]) for row in table] == [
        ("exchange.weight.end=0.0", "cnn"),
        ("exchange.weight.end=0.0", "mlp"),
        ("exchange.weight.end=0.1", "cnn"),
        ("exchange.weight.end=0.1", "mlp"),
    ]
    assert table[2]["difference_mean"] == pytest.approx(0.1)
    assert table[0]["mean"] == pytest.approx(0.805)
    plain = RUNNER.invoke(app, ["compare", *map(str, runs)]).stdout
    assert "+10.00 ± 0.00" in plain
    assert f"{tmp_path}/{{0.1-0,0.1-1}}" in plain
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    assert "is no finished run" in str(RUNNER.invoke(app, ["compare", str(unfinished)]).exception)


def test_settings_name_the_folders_behind_them(tmp_path: Path) -> None:
    runs = [("x", seed, finished(tmp_path / f"seed={seed}", 0.9)) for seed in (0, 1)]
    (found,) = settings(runs)
    assert found.runs == f"{tmp_path}/{{seed=0,seed=1}}"
    assert found.values("cnn", "test_accuracy") == {0: 0.9, 1: 0.9}
    assert found.values("nobody", "test_accuracy") == {}


def test_a_study_does_what_is_not_done_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan("smoke", [], [axis("exchange.weight.end=0,0.1")], 2, tmp_path)
    finished(cells[0].folder, 0.9, "exchange.weight.end=0", "seed=0")
    cells[1].folder.mkdir(parents=True)
    (cells[1].folder / "experiment.toml").write_text(dumps(cells[1].experiment), "utf-8")
    cells[2].folder.mkdir(parents=True)
    (cells[2].folder / "coordinator.log").touch()
    began: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        began.append(command[4:])
        if "seed=1" in command[-1] and "0.1" in command[-1]:
            return subprocess.CompletedProcess(command, 1, "", "error: no luck\n")
        folder = Path(command[-1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    with pytest.raises(RunFailedError, match=r"1 of 4 runs failed; the first: .*: no luck"):
        perform(cells, 1, said.append)
    assert began[0] == ["--resume", str(cells[1].folder)]
    assert [command[-1] for command in began[1:]] == [str(cells[2].folder), str(cells[3].folder)]
    assert load(began[1][0]) == cells[2].experiment
    assert len(said) == 3
    other = plan("smoke", ["epochs=1"], [axis("exchange.weight.end=0,0.1")], 2, tmp_path)
    with pytest.raises(EntangledError, match="holds a run of another experiment"):
        perform(other, 1, said.append)


def test_numbers_for_people() -> None:
    assert shown(0.5, 0.01, share=False) == "0.5000 ± 0.0100"
    assert shown(None, None, share=True) == "–"
