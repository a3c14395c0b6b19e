"""Means with their standard deviation, and paired differences with their confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Mode = Literal["min", "max"]


class Spread(NamedTuple):
    """The mean and the standard deviation over runs."""

    mean: float
    deviation: float
    """The sample standard deviation (n - 1); NaN for fewer than two runs."""


class Difference(NamedTuple):
    """The mean difference of pairs, with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def p_value(self) -> float:
        """That of the two-sided paired t-test, which is below 0.05 just where the interval excludes 0; else NaN."""
        if self.pairs < 2 or not math.isfinite(self.mean):
            return math.nan
        half = self.high - self.mean
        if half == 0:
            return float(self.mean == 0)
        from scipy.stats import t  # its import takes half a second, which only a report needs

        freedom = self.pairs - 1
        return float(2 * t.sf(abs(self.mean) / half * t.ppf(0.975, freedom), freedom))


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; both are NaN where a run has no finite number.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0)
    """
    if not values or not all(map(math.isfinite, values)):
        return Spread(math.nan, math.nan)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean of ``values - baseline`` with Student's 95 % interval, mean ± t(.975, n - 1) s / sqrt(n).

    The effect of a seed on both of its runs cancels in a pair, so that few seeds reveal small differences.

    Args:
        values: One number per seed.
        baseline: The baseline's numbers, for the same seeds in the same order.

    Example:
        >>> difference = paired_difference([3.0, 4.0, 6.0], [1.0, 1.0, 2.0])
        >>> round(difference.mean, 2), round(difference.low, 2), round(difference.high, 2)
        (3.0, 0.52, 5.48)
        >>> round(difference.p_value, 3)
        0.035
    """
    mean, deviation = spread([value - other for value, other in zip(values, baseline, strict=True)])
    if len(values) < 2:
        return Difference(mean, math.nan, math.nan, len(values))
    from scipy.stats import t  # its import takes half a second, which only a report needs

    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979): a limit on them bounds the chance of any false discovery.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    corrected, worst = list(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def gap_closed(distilled: float, alone: float, teacher: float, mode: Mode = "max") -> float:
    """The share of the distance from the student alone to its teacher that distillation covers.

    NaN where the teacher is not better than the student alone.

    Example:
        >>> gap_closed(distilled=90.0, alone=80.0, teacher=100.0)
        0.5
        >>> gap_closed(distilled=3.0, alone=4.0, teacher=2.0, mode="min")
        0.5
    """
    is_better = teacher > alone if mode == "max" else teacher < alone
    return (distilled - alone) / (teacher - alone) if is_better else math.nan
