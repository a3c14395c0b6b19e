"""The report of a comparison: what is printed, and the files in its root directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Plan, Run
from kd_lightning.compare.report.contents import Report, collect
from kd_lightning.compare.report.exports import to_latex, to_runs_csv
from kd_lightning.compare.report.tables import to_csv, to_markdown, to_terminal
from kd_lightning.compare.report.tensorboard import write_tensorboard
from kd_lightning.core.files import write_text

PAGE, TABLE, LINES, RUNS, LATEX, CURVES = "report.html", "table.md", "table.csv", "runs.csv", "table.tex", "curves.png"


def write_report(
    plan: Plan,
    results: Results,
    reasons: Mapping[Run, str],
    stats: Mapping[str, NetworkStats],
    root: Path,
    console: Console,
    command: str = "kd-lightning compare",
) -> None:
    """Print the tables of the finished runs, and write them, the page and the curves into the root directory.

    Args:
        plan: The plan of the comparison.
        results: The results of the finished runs.
        reasons: Why the other runs are not finished.
        stats: The costs of the networks, by their keys.
        root: Directory of the comparison.
        console: Console on which the tables are printed.
        command: The command that repeats the comparison, for the page.
    """
    from kd_lightning.compare.report.plots import draw_curves  # it loads matplotlib, which the runs do not need
    from kd_lightning.compare.report.web.render import render_page

    report = collect(plan, results, reasons, stats, root)
    root.mkdir(parents=True, exist_ok=True)
    drawn = draw_curves(plan, results, report.measures, root / CURVES)
    markdown, curves = _markdown(report), [f"![Learning curves]({CURVES})"] if drawn else []
    written = {
        PAGE: render_page(report, command),
        TABLE: "\n\n".join([markdown, *curves]) + "\n",
        LINES: to_csv([row for group in plan.groups for row in report.rows[group]]),
        RUNS: to_runs_csv(plan, results, reasons, report.measures),
        LATEX: to_latex(plan, report.rows),
    }
    for name, text in written.items():
        write_text(root / name, text)
    _print(report, console)
    console.print(Text(f"\n{report.answer}", style="bold"))
    console.print(Text(f"The page: {root / PAGE}"), soft_wrap=True)
    beside = [*list(written)[1:], *([CURVES] if drawn else [])]
    console.print(Text(f"Beside it: {', '.join(beside)}"), soft_wrap=True)
    for line in write_tensorboard(plan, results, report.measures, markdown, root):
        console.print(Text(line), soft_wrap=True)


def _markdown(report: Report) -> str:
    plan, sections = report.plan, [*report.sections.values(), report.networks]
    parts = [f"# {plan.title}", f"**{report.answer}**", plan.notes, *map(to_markdown, sections), report.legend]
    return "\n\n".join(filter(None, parts))


def _print(report: Report, console: Console) -> None:
    console.print(Text(f"\n{report.plan.title}", style="bold underline"))
    if report.plan.notes:
        console.print(Text(report.plan.notes))
    for section in [*report.sections.values(), report.networks]:
        for part in to_terminal(section):
            console.print(part)
    console.print(Text(report.legend, style="dim"))
