"""Conclusions: sentences that follow from the numbers of a group."""

from __future__ import annotations

from kd_lightning.compare.measure.measures import measure_of
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Variant
from kd_lightning.compare.report.statistics import Difference
from kd_lightning.compare.report.summary import Measures, Row


def draw_conclusions(rows: list[Row]) -> list[str]:
    """Write a sentence for each paired difference."""
    return [
        _conclusion(row.variant.title, row.variant.baseline.title, row.difference, row.measures)
        for row in rows
        if row.variant.baseline and row.difference.pairs
    ]


def caveats(group: Group, results: Results, measures: Measures) -> list[str]:
    """Write the facts that a reader needs to judge the group's table."""
    teachers = dict.fromkeys(variant.teacher for variant in group.variants if variant.teacher)
    notes = [note for teacher in teachers if (note := _training_data_of(teacher, group, results))]
    starts: dict[tuple[int, str], set[str]] = {}
    for run in [run for variant in group.variants for run in variant.runs if run in results]:
        starts.setdefault((run.seed, results[run]["network"]), set()).add(results[run]["start"])
    if any(len(weights) > 1 for weights in starts.values()):
        notes.append("Attention: runs of one seed and one network did not start from the same weights.")
    if len(measures.monitors) > 1:
        names = ", ".join(measure_of(key).name for key in measures.monitors)
        notes.append(
            f"Attention: the runs monitor different metrics ({names}); differences are of {measures.monitor.name}."
        )
    return notes


def _conclusion(title: str, baseline: str, difference: Difference, measures: Measures) -> str:
    low, high = (measures.monitor.signed(value) for value in (difference.low, difference.high))
    mean = f"{measures.monitor.signed(difference.mean)} {_unit(measures)}"
    if difference.pairs < 2:
        return f"{title} against {baseline}: {mean} with one seed, which has no interval."
    points = f"{mean} over {difference.pairs} seeds; the 95 % interval, {low} to {high}"
    match difference.verdict(measures.mode):
        case "even":
            return f"{title} against {baseline}: no measurable difference, {points}, contains 0."
        case verdict:
            side = "above" if difference.low > 0 else "below"
            return f"{title} against {baseline}: {verdict}, {points}, lies {side} 0."


def _unit(measures: Measures) -> str:
    lower = " (lower is better)" if measures.mode == "min" else ""
    return f"{measures.monitor.unit}{lower}"


def _training_data_of(teacher: Variant, group: Group, results: Results) -> str | None:
    taught = [run for variant in group.variants if variant.teacher is teacher for run in variant.runs if run in results]
    teachers = {run.teacher for run in taught if run.teacher in results}
    of_teachers = {results[run]["train_images"] for run in teachers if run}
    of_students = {results[run]["train_images"] for run in taught}
    if not of_teachers or None in of_teachers | of_students:
        return None
    students = "as did their students" if of_teachers == of_students else f"their students from {_counts(of_students)}"
    named = f"The {len(teachers)} teachers ({teacher.path})" if len(teachers) > 1 else f"The teacher ({teacher.path})"
    return f"{named} learned from {_counts(of_teachers)} labelled images, {students}."


def _counts(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))
