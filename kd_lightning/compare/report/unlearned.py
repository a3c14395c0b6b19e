"""Seeds that did not learn, or that ended far below the others: a mean over seeds hides them."""

from __future__ import annotations

from math import isfinite, nan, sqrt
from statistics import median
from typing import NamedTuple

from kd_lightning.compare.measure.measures import ACCURACY
from kd_lightning.compare.plan.artifacts import Result, Results
from kd_lightning.compare.plan.variants import Run, Variant
from kd_lightning.compare.report.summary import Measures

DEVIATIONS = 6.0
"""Median absolute deviations, scaled to standard deviations of a normal distribution."""
LEAST_SHARE = 0.05
"""Of the median: a smaller distance to it is no failure, however near the other seeds are to each other."""


class Unlearned(NamedTuple):
    """A run far from what the other seeds of its variant reached."""

    run: Run
    value: float
    """Of the monitored measure, in the unit that is shown."""
    median: float
    how: str


def unlearned_seeds(variant: Variant, results: Results, measures: Measures) -> list[Unlearned]:
    """Find the runs of a variant whose accuracy is at chance, and those far on the worse side of the median.

    Three seeds are needed to call one far from the others.
    """
    stored = {run: measures.monitor.value(results[run]) for run in variant.runs if run in results}
    values = {run: value for run, value in stored.items() if value is not None}
    finite = [value for value in values.values() if isfinite(value)]
    middle, sign = median(finite) if finite else nan, 1 if measures.mode == "max" else -1
    deviation = 1.4826 * median(abs(value - middle) for value in finite) if finite else nan
    least = max(DEVIATIONS * deviation, LEAST_SHARE * abs(middle))
    found: list[Unlearned] = []
    for run, value in values.items():
        if not isfinite(value):
            found.append(Unlearned(run, value, middle, f"diverged: its {measures.monitor.name} is not finite"))
        elif _is_at_chance(results[run]):
            found.append(Unlearned(run, value, middle, "did not learn: its accuracy is at chance"))
        elif len(finite) > 2 and sign * (middle - value) > least:
            found.append(Unlearned(run, value, middle, "is far from the other seeds"))
    return found


def sentence_about(found: Unlearned, measures: Measures) -> str:
    """Name a seed that did not learn."""
    run, monitor = found.run, measures.monitor
    value, middle = monitor.text(found.value), monitor.text(found.median)
    unit = " %" if monitor.is_percentage else ""
    return (
        f"{run.variant.title}, seed {run.seed} {found.how} ({monitor.name} {value}{unit}; the median of its variant's "
        f"seeds is {middle}{unit}). The means, and the differences, include it."
    )


def _is_at_chance(result: Result) -> bool:
    """True unless the accuracy is three standard errors above the share of the most frequent class."""
    chance, accuracy, count = result.get("chance"), ACCURACY.stored(result), result.get("test_images")
    if chance is None or accuracy is None or not count or chance == 1:
        return False
    return accuracy <= chance + 3 * sqrt(chance * (1 - chance) / count)
