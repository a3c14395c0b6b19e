"""Writes the tables of docs/<page>.md from the runs of configs/compare/<name>.yaml: `make families`.

python -m benchmarks.families NAME [--runs runs/compare/NAME] [--page NAME]

A table without finished runs is left unchanged.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import median

from benchmarks.zoo import ROOT, difference, results
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Group
from kd_lightning.compare.report.statistics import spread


def table(group: Group, runs: Path) -> str:
    """Make a table of a group: accuracy, difference to the baseline, and seconds of each variant."""
    found = {variant.name: results(variant, runs) for variant in group.variants}
    accuracies = {name: [100 * result["accuracy"] for result in there] for name, there in found.items()}
    rows = ["| | accuracy, % | seeds | difference, points | to | s a run |", "|---|---|---|---|---|---|"]
    for variant in group.variants:
        there = accuracies[variant.name]
        if len(there) < len(variant.runs):
            rows.append(f"| {variant.title} | not run | | | | |")
            continue
        mean, deviation = spread(there)
        base = variant.baseline
        against = "" if base is None or base.name == variant.name else difference(there, accuracies[base.name])
        if re.search(r"\[-.*\+", against):
            against += ": cannot be told from it"
        cells = [
            variant.title,
            f"{mean:.2f} ± {deviation:.2f}" if len(there) > 1 else f"{mean:.2f}",
            str(len(there)),
            against,
            base.title if base is not None and against else "",
            f"{median(result['cpu_seconds'] for result in found[variant.name]):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the compare file in configs/compare/, and the page")
    parser.add_argument("--runs", type=Path, help="the folder of the comparison")
    parser.add_argument("--page", help="the page in docs/, where it has another name")
    given = parser.parse_args()
    runs = given.runs or ROOT / "runs/compare" / given.name
    page = ROOT / "docs" / f"{given.page or given.name}.md"
    text = page.read_text(encoding="utf-8")
    for group in read_plan(ROOT / "configs/compare" / f"{given.name}.yaml").groups:
        begin, end = f"<!-- {group.name}: begin -->", f"<!-- {group.name}: end -->"
        before, mark, rest = text.partition(begin)
        if mark and any(results(variant, runs) for variant in group.variants):
            text = f"{before}{begin}\n{table(group, runs)}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
