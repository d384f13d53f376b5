"""How much predictions give away under every setting of a study, beside the accuracy: the table of docs/results.md.

    entangled study private-audit --seeds 5 --vary exchange.publish.top_k=1,3
    python -m benchmarks.leakage runs/private-audit-study

Each run is attacked as `entangled log leakage` does it, with the runs of the same setting's other seeds as shadows, so
that every seed is once the target. Means over seeds, with 95 % intervals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from entangled.comparison import interval, shown
from entangled.log import reader
from entangled.log.audit import attack


def lines(setting: Path) -> list[str]:
    """A line for each peer of one setting, whose folder holds its runs, `seed=0`, `seed=1`, …."""
    folders = sorted(path.parent for path in setting.glob("seed=*/summary.json"))
    runs = [reader.open_run(folder) for folder in folders]
    found = [attack(run, [r for r in runs if r is not run], {}, reader.ignore) for run in runs]
    tested = [json.loads((folder / "summary.json").read_text("utf-8"))["peers"] for folder in folders]
    table: list[str] = []
    for peer in runs[0].peers:
        cells = [_mean([figures[peer]["test_accuracy"] for figures in tested], share=True)]
        for name in ("loss threshold", "LiRA"):
            attacks = [a for of_run in found for a in of_run if (a.peer, a.attack) == (peer, name)]
            cells += [
                _mean([a.auc for a in attacks], share=False),
                _mean([a.true_positives for a in attacks], share=True),
            ]
        table.append(f"| {setting.name} | `{peer}` | {' | '.join(cells)} |")
    return table


def _mean(values: list[float], *, share: bool) -> str:
    found = interval(values)
    return shown(found.mean, found.reach, share=share)


def main() -> None:
    """Print the table of a study's folder."""
    print("| setting | peer | test accuracy | loss: AUC | loss: found at 1 % | LiRA: AUC | LiRA: found at 1 % |")
    print("|---|---|---|---|---|---|---|")
    for setting in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        print("\n".join(lines(setting)), flush=True)


if __name__ == "__main__":
    main()
