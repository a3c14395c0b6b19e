"""What the runs of a variant come to: a row of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from kd_lightning.compare.plan import Run, Variant
from kd_lightning.compare.schedule import Result
from kd_lightning.compare.statistics import Difference, Spread, gap_closed, paired_difference, spread

Results = Mapping[Run, Result]
"""Of the runs that are finished."""


@dataclass(frozen=True)
class Measure:
    """A number of every run: its key in a result, and how it is shown."""

    key: str
    heading: str
    digits: int
    scale: float = 1.0


MEASURES = (
    Measure("accuracy", "accuracy, %", 2, scale=100),
    Measure("errors", "errors", 1),
    Measure("train_accuracy", "train, %", 2, scale=100),
    Measure("nll", "NLL", 4),
    Measure("calibration_error", "ECE, %", 2, scale=100),
    Measure("agreement", "agreement, %", 2, scale=100),
    Measure("divergence", "KL", 4),
    Measure("seconds", "seconds", 1),
)


@dataclass(frozen=True)
class Row:
    """A variant over its finished seeds."""

    variant: Variant
    seeds: int
    """How many are finished."""
    spreads: dict[str, Spread]
    """By a measure's key, in the measure's unit; NaN where its runs have no such number."""
    difference: Difference
    """Of the test accuracy to the baseline's, in points, over the seeds that both have finished; NaN without one."""
    gap_closed: float
    """In %, of the way from the baseline to the teacher; NaN where one of the two is missing or there is no way."""


def summarise(variant: Variant, results: Results) -> Row:
    """The row of a variant."""
    own = [results[run] for run in variant.runs if run in results]
    spreads = {
        measure.key: spread([measure.scale * result[measure.key] for result in own if result[measure.key] is not None])
        for measure in MEASURES
    }
    baseline = variant.baseline.runs if variant.baseline else []
    pairs = [pair for pair in zip(variant.runs, baseline, strict=False) if all(run in results for run in pair)]
    difference = paired_difference(
        [100 * results[run]["accuracy"] for run, _ in pairs], [100 * results[other]["accuracy"] for _, other in pairs]
    )
    return Row(variant, len(own), spreads, difference, 100 * _gap_closed(pairs, results))


def _gap_closed(pairs: list[tuple[Run, Run]], results: Results) -> float:
    taught = [(run, alone, run.teacher) for run, alone in pairs if run.teacher and run.teacher in results]
    if not taught:
        return math.nan
    means = [fmean(results[run]["accuracy"] for run in runs) for runs in zip(*taught, strict=True)]
    return gap_closed(distilled=means[0], alone=means[1], teacher=means[2])
