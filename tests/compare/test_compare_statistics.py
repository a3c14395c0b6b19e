from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from kd_lightning.compare.report.statistics import gap_closed, paired_difference, spread


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


@pytest.mark.parametrize(
    ("differences", "verdict"), [([1.0, 1.1, 0.9], "worse"), ([-1.0, -1.1, -0.9], "better"), ([1.0, -1.0], "even")]
)
def test_less_is_better_of_an_error(differences: list[float], verdict: str) -> None:
    assert paired_difference(differences, [0.0] * len(differences)).verdict("min") == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.1, 0.9], "better"),
        ([-1.0, -1.1, -0.9], "worse"),
        ([1.0, -1.0, 0.1], "even"),
        ([5.0], "even"),
        ([], "even"),
    ],
)
def test_only_an_interval_without_0_decides(differences: list[float], verdict: str) -> None:
    assert paired_difference(differences, [0.0] * len(differences)).verdict() == verdict


def test_undefined_statistics_are_nan() -> None:
    assert math.isnan(spread([]).mean)
    assert spread([4.0]).mean == 4.0
    assert math.isnan(spread([4.0]).deviation)
    assert math.isnan(gap_closed(distilled=90, alone=90, teacher=90))
    assert gap_closed(distilled=95, alone=90, teacher=92) == 2.5
    assert gap_closed(distilled=0.5, alone=1.0, teacher=0.25, mode="min") == pytest.approx(2 / 3)
    assert math.isnan(gap_closed(distilled=0.5, alone=1.0, teacher=2.0, mode="min")), "the teacher is worse"
