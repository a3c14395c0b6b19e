"""What the numbers say, in sentences that they decide."""

from __future__ import annotations

from kd_lightning.compare.plan import Group, Variant
from kd_lightning.compare.statistics import Difference
from kd_lightning.compare.summary import Results, Row


def findings(rows: list[Row]) -> list[str]:
    """What each paired difference says."""
    return [
        _finding(row.variant.title, row.variant.baseline.title, row.difference)
        for row in rows
        if row.variant.baseline and row.difference.pairs
    ]


def caveats(group: Group, results: Results) -> list[str]:
    """What a reader must know to judge the group's table."""
    teachers = dict.fromkeys(variant.teacher for variant in group.variants if variant.teacher)
    notes = [note for teacher in teachers if (note := _what_teachers_saw(teacher, group, results))]
    starts: dict[tuple[int, str], set[str]] = {}
    for run in [run for variant in group.variants for run in variant.runs if run in results]:
        starts.setdefault((run.seed, results[run]["network"]), set()).add(results[run]["start"])
    if any(len(weights) > 1 for weights in starts.values()):
        notes.append("Attention: runs of one seed and one network did not start from the same weights.")
    return notes


def _finding(title: str, baseline: str, difference: Difference) -> str:
    mean, low, high, pairs = difference
    if pairs < 2:
        return f"{title} against {baseline}: {mean:+.2f} points with one seed, which has no interval."
    points = f"{mean:+.2f} points over {pairs} seeds; the 95 % interval, {low:+.2f} to {high:+.2f}"
    match difference.verdict:
        case "better":
            return f"{title} against {baseline}: better, {points}, lies above 0."
        case "worse":
            return f"{title} against {baseline}: worse, {points}, lies below 0."
        case _:
            return f"{title} against {baseline}: no measurable difference, {points}, contains 0."


def _what_teachers_saw(teacher: Variant, group: Group, results: Results) -> str | None:
    taught = [run for variant in group.variants if variant.teacher is teacher for run in variant.runs if run in results]
    teachers = {run.teacher for run in taught if run.teacher in results}
    saw = {results[run]["train_images"] for run in teachers if run}
    learned_from = {results[run]["train_images"] for run in taught}
    if not saw or None in saw | learned_from:
        return None
    students = "as did their students" if saw == learned_from else f"their students from {_counts(learned_from)}"
    return f"The {len(teachers)} teachers ({teacher.path}) learned from {_counts(saw)} labelled images, {students}."


def _counts(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))
