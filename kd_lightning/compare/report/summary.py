"""A row of a table: a variant over its seeds, and the measures that a table shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

from kd_lightning.compare.measure.measures import ACCURACY, CLASS_MEASURES, SECONDS, Measure, measure_of
from kd_lightning.compare.plan.artifacts import Result, Results
from kd_lightning.compare.plan.variants import Group, Run, Variant
from kd_lightning.compare.report.statistics import Difference, Mode, Spread, gap_closed, paired_difference, spread


@dataclass(frozen=True)
class Measures:
    """The measures of a group: the monitored one, by which its variants are compared, and all that its table shows."""

    monitor: Measure = ACCURACY
    mode: Mode = "max"
    shown: tuple[Measure, ...] = (*CLASS_MEASURES, SECONDS)
    """Starts with the monitored measure."""
    monitors: tuple[str, ...] = (ACCURACY.key,)
    """The keys of all monitored measures of the group's runs: one, unless they differ."""


def group_measures(group: Group, results: Results) -> Measures:
    """Collect the measures of a group from its results; without results, those of class labels.

    Where runs have different monitors, the group goes by that of its first run.
    """
    found = [results[run] for variant in group.variants for run in variant.runs if run in results]
    if not found:
        return Measures()
    monitors = tuple(dict.fromkeys(_monitor(result) for result in found))
    of_classes = [measure for measure in CLASS_MEASURES if any(_has(result, measure) for result in found)]
    others = dict.fromkeys(key for result in found for key in result.get("metrics", {}))
    monitor = measure_of(monitors[0])
    shown = dict.fromkeys([monitor, *of_classes, *map(measure_of, others), SECONDS])
    return Measures(monitor, cast("Mode", found[0].get("mode", "max")), tuple(shown), monitors)


def _monitor(result: Result) -> str:
    return result.get("monitor", ACCURACY.key)


def _has(result: Result, measure: Measure) -> bool:
    """True if the measure belongs to the result's kind of label, even where this run has no value of it."""
    return result.get("label_kind", "classes") == "classes" or measure.key in result.get("metrics", {})


@dataclass(frozen=True)
class Row:
    """A variant over its finished seeds."""

    variant: Variant
    seeds: int
    """The number of finished seeds."""
    measures: Measures
    spreads: dict[str, Spread]
    """By a measure's key, in the measure's unit; NaN where the runs have no such number."""
    differences: dict[str, Difference]
    """To the baseline, by a measure's key, over the seeds that both have finished; NaN without a baseline."""
    gap_closed: float
    """In %, of the distance from the baseline to the teacher; NaN without both, or if the teacher is not better."""

    @property
    def difference(self) -> Difference:
        """The difference of the monitored measure."""
        return self.differences[self.measures.monitor.key]


def summarise(variant: Variant, results: Results, measures: Measures | None = None) -> Row:
    """Build the row of a variant.

    Args:
        variant: The variant.
        results: The results of the finished runs.
        measures: The measures of its group; those of class labels if not given.
    """
    measures = measures or Measures()
    own = [results[run] for run in variant.runs if run in results]
    spreads = {
        measure.key: spread([value for result in own if (value := measure.value(result)) is not None])
        for measure in measures.shown
    }
    differences = {measure.key: _difference(variant, results, measure) for measure in measures.shown}
    closed = _gap_closed(_pairs(variant, results, measures.monitor), results, measures)
    return Row(variant, len(own), measures, spreads, differences, 100 * closed)


def _pairs(variant: Variant, results: Results, measure: Measure) -> list[tuple[Run, Run]]:
    """The runs of a variant with the baseline's of the same seed, where both have the measure."""
    baseline = variant.baseline.runs if variant.baseline else []
    both = zip(variant.runs, baseline, strict=False)
    return [pair for pair in both if _have(measure, pair, results)]


def _difference(variant: Variant, results: Results, measure: Measure) -> Difference:
    pairs = _pairs(variant, results, measure)
    values = [[measure.scale * _stored(results, run, measure) for run in runs] for runs in zip(*pairs, strict=True)]
    return paired_difference(*(values or [[], []]))


def _gap_closed(pairs: Sequence[tuple[Run, Run]], results: Results, measures: Measures) -> float:
    taught = [
        (run, alone, run.teacher)
        for run, alone in pairs
        if run.teacher and _have(measures.monitor, [run.teacher], results)
    ]
    if not taught:
        return math.nan
    means = [fmean(_stored(results, run, measures.monitor) for run in runs) for runs in zip(*taught, strict=True)]
    return gap_closed(distilled=means[0], alone=means[1], teacher=means[2], mode=measures.mode)


def _have(measure: Measure, runs: Iterable[Run], results: Results) -> bool:
    return all(run in results and measure.stored(results[run]) is not None for run in runs)


def _stored(results: Results, run: Run, measure: Measure) -> float:
    return cast("float", measure.stored(results[run]))
