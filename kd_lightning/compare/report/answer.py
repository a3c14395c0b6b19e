"""The headline: what the teacher was worth, in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from kd_lightning.compare.plan.variants import Group, Plan
from kd_lightning.compare.report.outcomes import Outcomes, decide
from kd_lightning.compare.report.summary import Row

MOST = 3
"""A group with more distilled variants gives their number with each outcome."""


def headline(plan: Plan, rows: Mapping[Group, Sequence[Row]]) -> str:
    """Write the answer of a comparison in one sentence: how much better the students with a teacher are.

    Without a student that has a teacher and a baseline, all variants with a baseline are compared.

    Args:
        plan: The plan of the comparison.
        rows: The rows of each group.
    """
    outcomes = decide([row for group in plan.groups for row in rows[group]])
    compared = {group: [row for row in rows[group] if row.difference.pairs] for group in plan.groups}
    taught = {group: [row for row in found if row.variant.teacher] for group, found in compared.items()}
    chosen = taught if any(taught.values()) else compared
    if not any(row.seeds for group in plan.groups for row in rows[group]):
        return "No run has finished yet."
    if not any(chosen.values()):
        return "Nothing is compared: no finished variant has a finished baseline."
    names = dict.fromkeys(row.measures.monitor.name for found in chosen.values() for row in found)
    start = "What the teacher was worth" if any(taught.values()) else "Against the baseline"
    parts = [_part(group, found, outcomes, len(plan.groups) > 1) for group, found in chosen.items() if found]
    return f"{start}, in {' and '.join(names)}: {'; '.join(parts)}."


def _part(group: Group, rows: Sequence[Row], outcomes: Outcomes, several: bool) -> str:
    where = f" ({group.title})" if several else ""
    words = [outcomes[row.variant, row.measures.monitor.key].word for row in rows]
    if len(rows) > MOST:
        counts = Counter(words)
        return f"of {len(rows)} variants {', '.join(f'{counts[word]} {word}' for word in sorted(counts))}{where}"
    found = [f"{row.variant.title} {word} ({quoted(row)})" for row, word in zip(rows, words, strict=True)]
    return f"{', '.join(found[:-1])}{' and ' if found[1:] else ''}{found[-1]}{where}"


def quoted(row: Row, key: str | None = None) -> str:
    """Write a difference with its unit and interval: that of the monitored measure, or of the one with a key."""
    monitor = row.measures.monitor
    measure = next((each for each in row.measures.shown if each.key == key), monitor)
    difference = row.differences[measure.key]
    unit = "points" if measure.is_percentage else "" if measure != monitor else measure.name
    mean = f"{measure.signed(difference.mean)} {unit}".rstrip()
    if math.isnan(difference.low):
        return f"{mean}, one seed"
    return f"{mean} [{measure.signed(difference.low)}, {measure.signed(difference.high)}]"
