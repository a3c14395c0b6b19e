"""What a comparison leaves: tables, curves, and how to look further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kd_lightning.compare.findings import caveats, findings
from kd_lightning.compare.plan import Group, Plan, Run
from kd_lightning.compare.summary import Results, Row, summarise
from kd_lightning.compare.tables import LEGEND, Facts, Section, comparison, networks, to_csv, to_markdown, to_terminal
from kd_lightning.compare.tensorboard import how_to_open

TABLE, LINES, CURVES = "table.md", "table.csv", "curves.png"


def write_report(
    plan: Plan, results: Results, reasons: Mapping[Run, str], facts: Facts, root: Path, console: Console
) -> None:
    """Prints the tables of what is finished, and writes them and the learning curves into the root folder.

    Args:
        plan: What was to be compared.
        results: Of the finished runs.
        reasons: Why the others are not.
        facts: What the networks cost.
        root: The folder of the comparison.
        console: Where the tables are printed.
    """
    from kd_lightning.compare.plots import draw_curves  # matplotlib, which the runs need not wait for

    rows = {variant: summarise(variant, results) for variant in plan.variants}
    sections = [
        _section(group, [rows[variant] for variant in group.variants], results, reasons) for group in plan.groups
    ]
    sections.append(networks({key: fact for key, fact in facts.items() if key in _networks(results)}))
    root.mkdir(parents=True, exist_ok=True)
    drawn = draw_curves(plan, results, root / CURVES)
    curves = [f"![Learning curves]({CURVES})"] if drawn else []
    markdown = [f"# {plan.title}", plan.notes, *map(to_markdown, sections), LEGEND, *curves]
    (root / TABLE).write_text("\n\n".join(filter(None, markdown)) + "\n", encoding="utf-8")
    (root / LINES).write_text(to_csv(list(rows.values())), encoding="utf-8")
    console.print(Text(f"\n{plan.title}", style="bold underline"))
    if plan.notes:
        console.print(Text(plan.notes))
    for part in [part for section in sections for part in to_terminal(section)]:
        console.print(part)
    console.print(Text(LEGEND, style="dim"))
    written = [str(root / name) for name in (TABLE, LINES, *([CURVES] if drawn else []))]
    console.print(Text(f"\nWritten: {', '.join(written)}"), soft_wrap=True)
    for line in how_to_open(plan, root):
        console.print(Text(line), soft_wrap=True)


def _section(group: Group, rows: list[Row], results: Results, reasons: Mapping[Run, str]) -> Section:
    failures = [f"{run.name}: {reasons[run]}" for variant in group.variants for run in variant.runs if run in reasons]
    return comparison(group.title, group.notes, rows, [*findings(rows), *caveats(group, results), *failures])


def _networks(results: Results) -> set[str]:
    return {result["network"] for result in results.values()}
