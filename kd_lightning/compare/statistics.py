"""How sure a number is: means with their spread, and paired differences with their interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean over runs, and how far the runs lie apart."""

    mean: float
    deviation: float
    """The sample standard deviation (n - 1); NaN for fewer than two runs."""


class Difference(NamedTuple):
    """A mean difference of pairs, with the 95 % interval of its true value."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``even`` where the interval contains 0 or there are too few pairs for one."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "even"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0)
    """
    if not values:
        return Spread(math.nan, math.nan)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean of ``values - baseline`` with Student's 95 % interval, mean ± t(.975, n - 1) s / sqrt(n).

    What a seed does to both of its runs cancels in a pair, so that few seeds can tell small differences.

    Args:
        values: One number a seed.
        baseline: The baseline's, of the same seeds in the same order.

    Example:
        >>> difference = paired_difference([3.0, 4.0, 6.0], [1.0, 1.0, 2.0])
        >>> round(difference.mean, 2), round(difference.low, 2), round(difference.high, 2)
        (3.0, 0.52, 5.48)
        >>> difference.verdict
        'better'
    """
    mean, deviation = spread([value - other for value, other in zip(values, baseline, strict=True)])
    if len(values) < 2:
        return Difference(mean, math.nan, math.nan, len(values))
    from scipy.stats import t  # half a second that only a report needs

    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))


def gap_closed(distilled: float, alone: float, teacher: float) -> float:
    """The share of the way from the student alone to its teacher that distillation went; NaN where there is no way.

    Example:
        >>> gap_closed(distilled=90.0, alone=80.0, teacher=100.0)
        0.5
    """
    return (distilled - alone) / (teacher - alone) if teacher > alone else math.nan
