"""The report of a comparison: tables, learning curves, and how to open TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Plan, Run
from kd_lightning.compare.report.answer import headline
from kd_lightning.compare.report.conclusions import caveats, draw_conclusions
from kd_lightning.compare.report.outcomes import Outcomes, decide
from kd_lightning.compare.report.summary import Measures, Row, group_measures, summarise
from kd_lightning.compare.report.tables import (
    Section,
    comparison,
    legend,
    networks,
    to_csv,
    to_markdown,
    to_terminal,
)
from kd_lightning.compare.report.tensorboard import write_tensorboard
from kd_lightning.core.files import write_text

TABLE, LINES, CURVES = "table.md", "table.csv", "curves.png"


def write_report(
    plan: Plan,
    results: Results,
    reasons: Mapping[Run, str],
    stats: Mapping[str, NetworkStats],
    root: Path,
    console: Console,
) -> None:
    """Print the tables of the finished runs, and write them and the learning curves into the root directory.

    Args:
        plan: The plan of the comparison.
        results: The results of the finished runs.
        reasons: Why the other runs are not finished.
        stats: The costs of the networks, by their keys.
        root: Directory of the comparison.
        console: Console on which the tables are printed.
    """
    from kd_lightning.compare.report.plots import draw_curves  # it loads matplotlib, which the runs do not need

    measures = {group: group_measures(group, results) for group in plan.groups}
    rows = {
        group: [summarise(variant, results, measures[group]) for variant in group.variants] for group in plan.groups
    }
    outcomes, answer = decide([row for group in plan.groups for row in rows[group]]), headline(plan, rows)
    sections = [_section(group, rows[group], measures[group], outcomes, results, reasons) for group in plan.groups]
    used = {result["network"] for result in results.values()}
    sections.append(networks({key: each for key, each in stats.items() if key in used}))
    root.mkdir(parents=True, exist_ok=True)
    drawn = draw_curves(plan, results, measures, root / CURVES)
    curves = [f"![Learning curves]({CURVES})"] if drawn else []
    explained = legend(list(measures.values()))
    parts = [f"# {plan.title}", f"**{answer}**", plan.notes, *map(to_markdown, sections), explained]
    markdown = "\n\n".join(filter(None, parts))
    write_text(root / TABLE, "\n\n".join([markdown, *curves]) + "\n")
    write_text(root / LINES, to_csv([row for group in plan.groups for row in rows[group]]))
    console.print(Text(f"\n{plan.title}", style="bold underline"))
    if plan.notes:
        console.print(Text(plan.notes))
    for part in [part for section in sections for part in to_terminal(section)]:
        console.print(part)
    console.print(Text(explained, style="dim"))
    console.print(Text(f"\n{answer}", style="bold"))
    written = [str(root / name) for name in (TABLE, LINES, *([CURVES] if drawn else []))]
    console.print(Text(f"Written: {', '.join(written)}"), soft_wrap=True)
    for line in write_tensorboard(plan, results, measures, markdown, root):
        console.print(Text(line), soft_wrap=True)


def _section(
    group: Group,
    rows: list[Row],
    measures: Measures,
    outcomes: Outcomes,
    results: Results,
    reasons: Mapping[Run, str],
) -> Section:
    failures = [f"{run.name}: {reasons[run]}" for variant in group.variants for run in variant.runs if run in reasons]
    sentences = [*draw_conclusions(rows, outcomes), *caveats(group, results, measures), *failures]
    return comparison(group.title, group.notes, rows, measures, sentences)
