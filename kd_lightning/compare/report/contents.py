"""The contents of a report, which the terminal, Markdown, the page and the tables of numbers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Plan, Run
from kd_lightning.compare.report.answer import headline
from kd_lightning.compare.report.conclusions import caveats, draw_conclusions
from kd_lightning.compare.report.outcomes import Outcomes, decide
from kd_lightning.compare.report.summary import Measures, Row, group_measures, summarise
from kd_lightning.compare.report.tables import Section, comparison, legend, networks


@dataclass(frozen=True)
class Report:
    """What all forms of a report say."""

    plan: Plan
    results: Results
    reasons: Mapping[Run, str]
    """Why the other runs are not finished."""
    stats: Mapping[str, NetworkStats]
    """The costs of the networks that finished runs have."""
    root: Path
    measures: Mapping[Group, Measures]
    rows: Mapping[Group, Sequence[Row]]
    outcomes: Outcomes
    answer: str
    """The headline."""
    sections: Mapping[Group, Section]
    networks: Section
    legend: str
    """Explains the numbers."""


def collect(
    plan: Plan, results: Results, reasons: Mapping[Run, str], stats: Mapping[str, NetworkStats], root: Path
) -> Report:
    """Compute all numbers and write all sentences of a report."""
    measures = {group: group_measures(group, results) for group in plan.groups}
    rows = {
        group: [summarise(variant, results, measures[group]) for variant in group.variants] for group in plan.groups
    }
    outcomes = decide([row for group in plan.groups for row in rows[group]])
    sections: dict[Group, Section] = {}
    for group in plan.groups:
        unfinished = [run for variant in group.variants for run in variant.runs if run in reasons]
        by_reason: dict[str, list[str]] = {}
        for run in unfinished:
            by_reason.setdefault(reasons[run], []).append(run.name)
        failures = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        notes = caveats(group, results, measures[group])
        sentences = [*draw_conclusions(rows[group], outcomes), *notes, *failures]
        sections[group] = comparison(group.title, group.notes, rows[group], measures[group], sentences)
    used = {result["network"] for result in results.values()}
    own = {key: each for key, each in stats.items() if key in used}
    answer, explained = headline(plan, rows), legend(list(measures.values()))
    return Report(
        plan, results, reasons, own, root, measures, rows, outcomes, answer, sections, networks(own), explained
    )
