"""Outcomes: what all differences of a report show together, which another machine's rounding does not change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from kd_lightning.compare.measure.measures import CLASS_MEASURES, ECE, NLL, SECONDS, Measure
from kd_lightning.compare.plan.variants import Variant
from kd_lightning.compare.report.statistics import Difference, holm
from kd_lightning.compare.report.summary import Measures, Row

LIMIT, MARGIN = 0.05, 2.0
"""A corrected p-value decides where it is below LIMIT / MARGIN: another machine's rounding may change it a little."""


class Outcome(NamedTuple):
    """What a difference shows."""

    word: Literal["better", "worse", "undecided"]
    p_value: float
    """Corrected by Holm over all differences of its measure in the report; NaN where it has no interval."""


Outcomes = Mapping[tuple[Variant, str], Outcome]
"""By a variant and a measure's key."""


def decide(rows: Iterable[Row]) -> dict[tuple[Variant, str], Outcome]:
    """Decide all differences of a report: the tested measures of each variant that has a baseline."""
    quoted: dict[Measure, list[tuple[Row, Difference]]] = {}
    for row in rows:
        for measure in tested_measures(row.measures):
            if (difference := row.differences[measure.key]).pairs:
                quoted.setdefault(measure, []).append((row, difference))
    outcomes: dict[tuple[Variant, str], Outcome] = {}
    for measure, differences in quoted.items():
        for (row, difference), p_value in zip(differences, _corrected(differences), strict=True):
            mode = row.measures.mode
            mode = mode if measure == row.measures.monitor else "min" if measure in (NLL, ECE) else "max"
            word = "better" if (difference.mean > 0) == (mode == "max") else "worse"
            outcomes[row.variant, measure.key] = Outcome(word if p_value < LIMIT / MARGIN else "undecided", p_value)
    return outcomes


def _corrected(differences: Sequence[tuple[Row, Difference]]) -> list[float]:
    """The p-values under Holm's correction; NaN for a difference without an interval, which does not count."""
    p_values = [difference.p_value for _, difference in differences]
    corrected = iter(holm([value for value in p_values if not math.isnan(value)]))
    return [value if math.isnan(value) else next(corrected) for value in p_values]


def tested_measures(measures: Measures) -> list[Measure]:
    """Return the measures whose differences a report quotes: the monitored one and those that say something else."""
    others = [measure for measure in measures.shown[1:] if measure not in CLASS_MEASURES and measure != SECONDS]
    of_classes = [measure for measure in (NLL, ECE) if measure in measures.shown[1:]]
    return [measures.monitor, *of_classes, *others]
