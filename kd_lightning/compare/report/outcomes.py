"""Outcomes: what all differences of a report show together, which another machine's rounding does not change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from kd_lightning.compare.measure.measures import CLASS_MEASURES, ECE, NLL, SECONDS, Measure
from kd_lightning.compare.plan.variants import Variant
from kd_lightning.compare.report.statistics import holm
from kd_lightning.compare.report.summary import Measures, Row

LIMIT, MARGIN = 0.05, 2.0
"""A corrected p-value decides where it is below LIMIT / MARGIN: another machine's rounding may change it a little."""


class Outcome(NamedTuple):
    """What a difference shows."""

    word: Literal["better", "worse", "undecided"]
    p_value: float
    """Corrected by Holm over all differences of the report; NaN where the difference has no interval."""


Outcomes = Mapping[tuple[Variant, str], Outcome]
"""By a variant and a measure's key."""


def decide(rows: Iterable[Row]) -> dict[tuple[Variant, str], Outcome]:
    """Decide all differences of a report: the tested measures of each variant that has a baseline."""
    found = [(row, measure, row.differences[measure.key]) for row in rows for measure in tested_measures(row.measures)]
    quoted = [(row, measure, each) for row, measure, each in found if each.pairs]
    with_interval = [i for i, (_, _, each) in enumerate(quoted) if not math.isnan(each.p_value)]
    corrected = dict(zip(with_interval, holm([quoted[i][2].p_value for i in with_interval]), strict=True))
    outcomes: dict[tuple[Variant, str], Outcome] = {}
    for i, (row, measure, difference) in enumerate(quoted):
        p_value, mode = corrected.get(i, math.nan), row.measures.mode
        mode = mode if measure == row.measures.monitor else "min" if measure in (NLL, ECE) else "max"
        word = "better" if (difference.mean > 0) == (mode == "max") else "worse"
        outcomes[row.variant, measure.key] = Outcome(word if p_value < LIMIT / MARGIN else "undecided", p_value)
    return outcomes


def tested_measures(measures: Measures) -> list[Measure]:
    """Return the measures whose differences a report quotes: the monitored one and those that say something else."""
    others = [measure for measure in measures.shown[1:] if measure not in CLASS_MEASURES and measure != SECONDS]
    of_classes = [measure for measure in (NLL, ECE) if measure in measures.shown[1:]]
    return [measures.monitor, *of_classes, *others]
