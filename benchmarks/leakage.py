"""How much predictions give away, and how good the models are, by what peers publish: the table of docs/results.md.

    python -m benchmarks.leakage --seeds 5 --vary exchange.publish.top_k=1,3 --vary exchange.publish.decimals=1,2

Unlike in a study, each `--vary` is on its own, beside the experiment as it is. Runs are trained in this process, as by
`benchmarks.in_process`, and each is attacked as `entangled log leakage` does it, with other seeds' runs as shadows.
Means over seeds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks import in_process
from entangled import private_data
from entangled.alignment import SampleIds
from entangled.comparison import interval, shown
from entangled.distribution import Probabilities
from entangled.errors import DataError
from entangled.experiment import Experiment
from entangled.launch import study
from entangled.log.audit import Attack, Look, attacks


def look(experiment: Experiment) -> tuple[in_process.Figures, Look]:
    """Train, and look at every peer's last predictions."""
    public = private_data.public(experiment)
    if public.y is None:
        raise DataError("the exchanged samples have no labels; the attacks need them")
    labels, peers = public.y, experiment.peer_names
    found = np.full((len(peers), len(labels)), np.nan)

    def seen(ids: SampleIds, said: list[Probabilities]) -> None:
        found[:, ids] = np.stack([p[np.arange(len(ids)), labels[ids]] for p in said])

    figures = in_process.train(experiment, seen)
    private = [private_data.private(experiment, peer, public.classes) for peer in peers]
    return figures, Look.at(peers, public.x, labels, found, private)


def lines(setting: str, runs: list[tuple[in_process.Figures, Look]]) -> list[str]:
    """A line for each peer, from the runs of all seeds."""
    found: list[Attack] = []
    for place, (_, target) in enumerate(runs):
        found += attacks(target, [shadow for other, (_, shadow) in enumerate(runs) if other != place])
    table: list[str] = []
    for peer in runs[0][1].peers:
        cells = [_mean([figures[peer]["test_accuracy"] for figures, _ in runs], share=True)]
        for name in ("loss threshold", "LiRA"):
            mine = [a for a in found if (a.peer, a.attack) == (peer, name)]
            cells += [
                _mean([a.auc for a in mine], share=False),
                _mean([a.true_positives for a in mine], share=True),
            ]
        table.append(f"| {setting} | `{peer}` | {' | '.join(cells)} |")
    return table


def _mean(values: list[float], *, share: bool) -> str:
    found = interval(values)
    return shown(found.mean, found.reach, share=share)


def main() -> None:
    """Train, attack and print the table."""
    parser = argparse.ArgumentParser(description="What leaks, by what peers publish.")
    parser.add_argument("experiment", nargs="?", default="private-audit")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()

    from peer import backends

    axes = [[], *([study.axis(text)] for text in given.vary)]
    cells = [cell for some in axes for cell in study.plan(given.experiment, [], some, given.seeds, Path())]
    backends.configure(cells[0].experiment, cells[0].experiment.peer_names[0])
    print("| setting | peer | test accuracy | loss: AUC | loss: found at 1 % | LiRA: AUC | LiRA: found at 1 % |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for label in dict.fromkeys(cell.label for cell in cells):
        print("\n".join(lines(label, [look(c.experiment) for c in cells if c.label == label])), flush=True)


if __name__ == "__main__":
    main()
