"""Writes the table of docs/zoo.md from the runs of configs/compare/zoo.yaml: `make zoo`.

python -m benchmarks.zoo [--runs runs/compare/zoo]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Variant
from kd_lightning.compare.report.statistics import paired_difference, spread

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
KD = {"alone": "kd", "alone-wide": None, "alone-batch-norm": "kd-batch-norm"}
"""Plain distillation of the same student, by the name of the variant without a teacher; None where it was not run."""


def results(variant: Variant, runs: Path) -> list[dict[str, Any]]:
    """Read the finished results of a variant, in the order of the seeds."""
    files = [runs / run.name / "result.json" for run in variant.runs]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def difference(ours: list[float], theirs: list[float]) -> str:
    """Format a difference in points with its 95 % interval, bold where that is above 0; empty if either was not run.

    One pair has no interval.
    """
    if len(ours) != len(theirs):
        return ""
    found = paired_difference(ours, theirs)
    if found.pairs < 2:
        return f"{found.mean:+.2f}"
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low > 0 else text


def table(runs: Path) -> str:
    """Make a row for each loss: its results once all runs are finished, and the page's note on it."""
    (group,) = (group for group in read_plan(ROOT / "configs/compare/zoo.yaml").groups if group.name == "zoo")
    found = {variant.name: results(variant, runs) for variant in group.variants}
    accuracies = {name: [100 * result["accuracy"] for result in there] for name, there in found.items()}
    notes = dict(re.findall(r"^- `([\w-]+)`: (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    rows = ["| loss | accuracy, % | to alone, points | to KD, points | ms a step | |", "|---|---|---|---|---|---|"]
    for variant in group.variants:
        name, alone = variant.name, variant.baseline.name if variant.baseline else variant.name
        if len(found[name]) < len(variant.runs):
            rows.append(f"| {variant.title} | not run | | | | |")
            continue
        mean, deviation = spread(accuracies[name])
        kd = KD[alone]
        cells = [
            variant.title,
            f"{mean:.2f} ± {deviation:.2f}",
            "" if name in KD else difference(accuracies[name], accuracies[alone]),
            "" if kd is None or name in (*KD, kd) else difference(accuracies[name], accuracies[kd]),
            f"{median(1000 * result['cpu_seconds'] / result['steps'] for result in found[name]):.1f}",
            notes.get(name, ""),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/compare/zoo", help="the folder of the comparison")
    begin, end = "<!-- zoo: begin -->", "<!-- zoo: end -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    content = f"{before}{begin}\n{table(parser.parse_args().runs)}\n{end}{after}"
    PAGE.write_text(content, encoding="utf-8")
    print(content)


if __name__ == "__main__":
    main()
