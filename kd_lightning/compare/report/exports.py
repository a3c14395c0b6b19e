"""The numbers of a comparison for other programs: each run's measures as tidy CSV, and the tables as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence

from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Plan, Run
from kd_lightning.compare.report.outcomes import tested_measures
from kd_lightning.compare.report.summary import Measures, Row

COLUMNS = ("group", "variant", "title", "seed", "teacher", "measure", "value", "unfinished")
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    each: f"\\{each}" for each in "&%$#_{}"
}


def to_runs_csv(plan: Plan, results: Results, reasons: Mapping[Run, str], measures: Mapping[Group, Measures]) -> str:
    """Write a line for each measure of each run, as stored, and one with the reason for each unfinished run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in plan.groups:
        for run in [run for variant in group.variants for run in variant.runs]:
            variant, teacher = run.variant, run.teacher.name if run.teacher else ""
            about = [variant.group, variant.name, variant.title, run.seed, teacher]
            if run in reasons:
                writer.writerow([*about, "", "", reasons[run]])
            elif run in results:
                for measure in measures[group].shown:
                    if (value := measure.stored(results[run])) is not None:
                        writer.writerow([*about, measure.key, value, ""])
    return text.getvalue()


def to_latex(plan: Plan, rows: Mapping[Group, Sequence[Row]]) -> str:
    r"""Write a table of each group, for ``\usepackage{booktabs}``."""
    return "\n".join(["% \\usepackage{booktabs}", *(_table(group, rows[group]) for group in plan.groups)])


def _table(group: Group, rows: Sequence[Row]) -> str:
    tested = tested_measures(rows[0].measures)
    heads = " & ".join(f"{tex(measure.heading)} & difference [95\\,\\%]" for measure in tested)
    lines = [
        rf"\begin{{tabular}}{{l{'rr' * len(tested)}}}",
        rf"\multicolumn{{{1 + 2 * len(tested)}}}{{l}}{{{tex(group.title)}}} \\",
        r"\toprule",
        rf" & {heads} \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [tex(row.variant.title)]
        for measure in tested:
            value, difference = row.spreads[measure.key], row.differences[measure.key]
            spread = "" if math.isnan(value.deviation) else rf" \pm {measure.text(value.deviation)}"
            low, high = (measure.signed(end) for end in (difference.low, difference.high))
            interval = "" if math.isnan(difference.low) else rf"\ [{low}, {high}]"
            cells.append("--" if math.isnan(value.mean) else f"${measure.text(value.mean)}{spread}$")
            cells.append("--" if not difference.pairs else f"${measure.signed(difference.mean)}{interval}$")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def tex(text: str) -> str:
    r"""Escape a text for LaTeX.

    Example:
        >>> print(tex("50 % of a_b"))
        50 \% of a\_b
    """
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _SPECIAL[found[0]], text)
