"""Conclusions: sentences that follow from the numbers of a group."""

from __future__ import annotations

from kd_lightning.compare.measure.measures import measure_of
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Variant
from kd_lightning.compare.report.answer import quoted
from kd_lightning.compare.report.outcomes import Outcomes, tested_measures
from kd_lightning.compare.report.summary import Measures, Row
from kd_lightning.compare.report.unlearned import sentence_about, unlearned_seeds


def draw_conclusions(rows: list[Row], outcomes: Outcomes) -> list[str]:
    """Write a sentence for each variant with a baseline, with all differences that the report quotes."""
    return [_conclusion(row, outcomes) for row in rows if row.variant.baseline and row.difference.pairs]


def caveats(group: Group, results: Results, measures: Measures) -> list[str]:
    """Write the facts that a reader needs to judge the group's table."""
    teachers = dict.fromkeys(variant.teacher for variant in group.variants if variant.teacher)
    notes = [note for teacher in teachers if (note := _training_data_of(teacher, group, results))]
    starts: dict[tuple[int, str], set[str]] = {}
    for run in [run for variant in group.variants for run in variant.runs if run in results]:
        starts.setdefault((run.seed, results[run]["network"]), set()).add(results[run]["start"])
    if any(len(weights) > 1 for weights in starts.values()):
        notes.append("Attention: runs of one seed and one network did not start from the same weights.")
    notes += [
        sentence_about(found, measures)
        for variant in group.variants
        for found in unlearned_seeds(variant, results, measures)
    ]
    if len(measures.monitors) > 1:
        names = ", ".join(measure_of(key).name for key in measures.monitors)
        notes.append(
            f"Attention: the runs monitor different metrics ({names}); differences are of {measures.monitor.name}."
        )
    return notes


def _conclusion(row: Row, outcomes: Outcomes) -> str:
    baseline, measures = row.variant.baseline, row.measures
    assert baseline is not None
    start = f"{row.variant.title} against {baseline.title}"
    lower = " (lower is better)" if measures.mode == "min" else ""
    rest = [
        f"{measure.name} {quoted(row, measure.key)}"
        for measure in tested_measures(measures)[1:]
        if row.differences[measure.key].pairs
    ]
    further = f"; {', '.join(rest)}" if rest else ""
    if row.difference.pairs < 2:
        return f"{start}: undecided, {quoted(row)}{lower}, which has no interval{further}."
    outcome = outcomes[row.variant, measures.monitor.key]
    p_value = "< 0.001" if outcome.p_value < 0.001 else f"= {outcome.p_value:.3f}"
    count = f"over {row.difference.pairs} seeds, p {p_value}"
    return f"{start}: {outcome.word}, {quoted(row)}{lower} {count}{further}."


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
