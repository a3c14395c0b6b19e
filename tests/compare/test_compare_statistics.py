from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from kd_lightning.compare.report.statistics import gap_closed, holm, paired_difference, spread


@pytest.mark.parametrize("pairs", [2, 3, 5, 30])
def test_the_paired_interval_is_that_of_the_paired_t_test(pairs: int) -> None:
    draw = np.random.default_rng(pairs)
    baseline = draw.normal(90, 5, pairs)
    values = baseline + draw.normal(1, 0.5, pairs)
    interval = ttest_rel(values, baseline).confidence_interval(0.95)
    difference = paired_difference(values.tolist(), baseline.tolist())
    assert difference.mean == pytest.approx(float((values - baseline).mean()))
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.pairs == pairs


def test_by_hand() -> None:
    # differences 1, 2, 3: mean 2, sample deviation 1, t(.975, 2) = 4.3027, half width 4.3027 / sqrt 3
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert difference == pytest.approx((2.0, 2 - 2.48414, 2 + 2.48414, 3), abs=1e-4)
    assert spread([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3)))


def test_p_values_are_those_of_the_paired_t_test() -> None:
    values, baseline = [3.0, 4.0, 6.0, 5.0], [1.0, 4.5, 2.0, 3.0]
    assert paired_difference(values, baseline).p_value == pytest.approx(ttest_rel(values, baseline).pvalue)
    assert paired_difference([2.0, 2.0], [1.0, 1.0]).p_value == 0, "every pair differs by the same"
    assert paired_difference([1.0, 1.0], [1.0, 1.0]).p_value == 1
    assert math.isnan(paired_difference([1.0], [2.0]).p_value)
    assert math.isnan(paired_difference([math.nan, 1.0], [2.0, 2.0]).p_value)


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, and none is below one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_undefined_statistics_are_nan() -> None:
    assert math.isnan(spread([]).mean)
    assert spread([4.0]).mean == 4.0
    assert math.isnan(spread([4.0]).deviation)
    assert math.isnan(gap_closed(distilled=90, alone=90, teacher=90))
    assert gap_closed(distilled=95, alone=90, teacher=92) == 2.5
    assert gap_closed(distilled=0.5, alone=1.0, teacher=0.25, mode="min") == pytest.approx(2 / 3)
    assert math.isnan(gap_closed(distilled=0.5, alone=1.0, teacher=2.0, mode="min")), "the teacher is worse"
