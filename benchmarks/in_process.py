"""A study of private data with all peers in this process: the figures of `entangled study`, for less CPU time.

    python -m benchmarks.in_process private-digits --vary exchange.weight.end=0,3 --seeds 2 [--out figures.jsonl]

Takes what `entangled study` takes, look-ahead included, trains with the same learners on the same batches, and
exchanges with the same arithmetic, one peer after the other, without coordinator, processes and log. Final figures
equal a run's to the bit, as `examples/private_loop.py` does up to rounding (the test of that:
tests/integration/test_private.py).
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from entangled import private_data
from entangled.alignment import SampleIds, sample_order
from entangled.comparison import Setting, rows, shown
from entangled.distribution import Probabilities, published, soft_targets
from entangled.errors import ExperimentError
from entangled.experiment import Experiment
from entangled.launch import study
from entangled.participation.seam import SoftTarget
from entangled.schedule import weight_at

Figures = dict[str, dict[str, float]]
"""By peer, then by name."""


def train(experiment: Experiment, seen: Callable[[SampleIds, list[Probabilities]], None] | None = None) -> Figures:
    """Train all peers of an experiment with private data.

    Args:
        experiment: as of a run.
        seen: is shown what would be logged in the last epoch: sample ids, and every peer's prediction.

    Returns:
        The final test accuracies, in all and of each class, and the baselines', named as in a run's summary.
    """
    from peer import backends
    from peer.private import lessons
    from peer.trainer import evaluate

    public = private_data.public(experiment)
    shape, names = public.x.shape[1:], experiment.peer_names
    learners = [backends.learner(experiment, name, shape, public.classes) for name in names]
    lesson = [
        lessons(
            experiment, name, public, None, lambda name=name: backends.learner(experiment, name, shape, public.classes)
        )
        for name in names
    ]
    exchange, layout, combination = experiment.exchange, experiment.layout(len(public.x)), experiment.combination()
    if exchange.lookahead == "auto":
        raise ExperimentError("how far auto looks ahead is measured in a run", expected="a number", got="auto")
    ahead: deque[tuple[SampleIds, list[Probabilities]]] = deque()
    order, predicted = np.zeros(0, np.int64), 0
    for number in range(layout.positions):
        while predicted < min(number + exchange.lookahead + 1, layout.positions):
            there = layout.position(predicted)
            if there.step == 0:
                order = sample_order(public.ids, exchange.shuffle_buffer, experiment.seed, there.epoch)
            ids = layout.batch(order, there.step)
            x, publish = public.x[ids], exchange.publish.model_dump()
            ahead.append((ids, [published(learner.predict(x), **publish) for learner in learners]))
            predicted += 1
        (ids, said), position = ahead.popleft(), layout.position(number)
        weight = float(np.float32(weight_at(exchange.weight, position, layout)))
        if seen is not None and position.epoch == layout.epochs - 1:
            seen(ids, said)
        for learner, own, target in zip(learners, lesson, soft_targets(said, combination), strict=True):
            learner.update(*own.batches.batch(number), SoftTarget(target, weight), public.x[ids])
            for baseline in own.baselines.values():
                baseline.learn(number)
    found: Figures = {}
    for name, learner, own in zip(names, learners, lesson, strict=True):
        found[name] = {}
        for label, tested in {"test": learner, **{k: b.learner for k, b in own.baselines.items()}}.items():
            figures = evaluate(tested, own.data.test_x, own.data.test_y)
            found[name][f"{label}_accuracy"] = figures.accuracy
            found[name] |= {f"{label}_accuracy_{c}": accuracy for c, accuracy in figures.by_class.items()}
    return found


def table(done: dict[tuple[str, int], Figures]) -> str:
    """Means over seeds, and differences seed by seed from the first setting, in Markdown."""
    labels = dict.fromkeys(label for label, _ in done)
    settings = [Setting(at, "", {seed: found for (label, seed), found in done.items() if label == at}) for at in labels]
    names = dict.fromkeys(name for found in done.values() for peer in found.values() for name in peer)
    metrics = [name for name in names if name.endswith("_accuracy")]  # those of each class are in --out
    lines = ["| setting | peer | metric | % ± 95 % | difference | seeds |", "|---|---|---|---|---|---|"]
    for row in (row for metric in metrics for row in rows(settings, metric)):
        mean = shown(row["mean"], row["reach"], share=True)
        difference = shown(row["difference_mean"], row["difference_reach"], share=True, sign=True)
        seeds = ", ".join(map(str, row["seeds"])) if isinstance(row["seeds"], Sequence) else ""
        lines.append(f"| {row['setting']} | `{row['peer']}` | {row['metric']} | {mean} | {difference} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the file of figures yet, and print the table."""
    parser = argparse.ArgumentParser(description="A study with all peers in this process.")
    parser.add_argument("experiment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keeps the figures, so that a study that was cut off goes on")
    given = parser.parse_args()

    cells = study.plan(given.experiment, given.set, [study.axis(v) for v in given.vary], given.seeds, Path())
    done: dict[tuple[str, int], Figures] = {}
    if given.out and given.out.exists():
        for line in given.out.read_text("utf-8").splitlines():
            label, seed, figures = json.loads(line)
            done[label, seed] = figures
    from peer import backends

    backends.configure(cells[0].experiment, cells[0].experiment.peer_names[0])
    for cell in cells:
        if (cell.label, cell.seed) in done:
            continue
        figures = done[cell.label, cell.seed] = train(cell.experiment)
        brief = {peer: {k: v for k, v in f.items() if k.endswith("_accuracy")} for peer, f in figures.items()}
        print(f"{cell.label} seed {cell.seed}: {brief}", flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps([cell.label, cell.seed, figures]) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
