"""What differences show together, from rows that are made up here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kd_lightning.compare.measure.measures import ECE, NLL, Measure
from kd_lightning.compare.plan.variants import Group, Plan, Variant
from kd_lightning.compare.report.answer import headline
from kd_lightning.compare.report.outcomes import decide
from kd_lightning.compare.report.statistics import Spread, paired_difference
from kd_lightning.compare.report.summary import Measures, Row

ALONE = Variant("g", "alone", "alone", {}, (0, 1, 2), None, None)
ERROR = Measures(Measure("mse", "mse"), "min", (Measure("mse", "mse"),), ("mse",))


def row(differences: list[float], measures: Measures | None = None, name: str = "taught") -> Row:
    measures = measures or replace(Measures(), shown=(Measures().monitor,))
    variant = Variant("g", name, name, {}, (0, 1, 2), ALONE, ALONE)
    found = {measure.key: paired_difference(differences, [0.0] * len(differences)) for measure in measures.shown}
    spreads = {measure.key: Spread(1.0, 0.1) for measure in measures.shown}
    return Row(variant, len(differences), measures, spreads, found, math.nan)


def word(each: Row, *others: Row) -> str:
    return decide([each, *others])[each.variant, each.measures.monitor.key].word


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([1.0, 1.1, 0.9], "better"), ([-1.0, -1.1, -0.9], "worse"), ([1.0, -1.0, 0.1], "undecided"), ([5.0], "undecided")],
)
def test_only_a_small_p_decides(differences: list[float], expected: str) -> None:
    assert word(row(differences)) == expected
    mirrored = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert word(row(differences, ERROR)) == mirrored, "less is better of an error"


def test_many_differences_need_a_smaller_p() -> None:
    each = row([1.0, 1.1, 0.9])  # p = 0.0033
    assert word(each, *(row([1.0, -1.0, 0.1], name=str(i)) for i in range(3))) == "better"
    assert word(each, *(row([1.0, -1.0, 0.1], name=str(i)) for i in range(9))) == "undecided"


def test_what_rounding_could_flip_is_undecided() -> None:
    # t = 4.30 of two degrees of freedom is p = 0.05
    for scale, expected in ((5.0, "undecided"), (7.0, "better")):  # p = 0.038, 0.020
        each = row([1 + math.sqrt(3) / scale * step for step in (-1, 0, 1)])
        assert decide([each])[each.variant, "accuracy"].p_value < 0.05
        assert word(each) == expected


def test_each_measure_is_corrected_by_itself() -> None:
    outcomes = decide([row([-1.0, -1.1, -0.9], Measures())])
    assert {key: outcome.word for (_, key), outcome in outcomes.items()} == {
        "accuracy": "worse",
        NLL.key: "better",
        ECE.key: "better",
    }
    assert [outcome.p_value for outcome in outcomes.values()] == [pytest.approx(0.0033, rel=0.02)] * 3
    both = decide([row([-1.0, -1.1, -0.9], Measures(), name=name) for name in "ab"])
    assert [outcome.p_value for outcome in both.values()] == [pytest.approx(2 * 0.0033, rel=0.02)] * 6


def test_headlines() -> None:
    variants = [each.variant for each in (row([], name=name) for name in "abcd")]
    group = Group("g", "few", "", [ALONE, *variants])
    plan, second = Plan("Title", "", [group]), Group("h", "many", "", variants)
    gains = [row([1.0, 1.1, 0.9], name=name) for name in "abcd"]
    assert headline(plan, {group: gains[:1]}) == (
        "What the teacher was worth, in accuracy: a better (+1.00 points [+0.75, +1.25])."
    )
    both = headline(Plan("", "", [group, second]), {group: gains[:2], second: [row([1.0, -1.0, 0.0])]})
    assert "[+0.75, +1.25]) and b better (+1.00" in both
    assert both.endswith("; taught undecided (+0.00 points [-2.48, +2.48]) (many).")
    assert headline(plan, {group: gains}) == "What the teacher was worth, in accuracy: of 4 variants 4 better."
    assert "a undecided (+5.00 points, one seed)" in headline(plan, {group: [row([5.0], name="a")]})
    alone = replace(gains[0], variant=Variant("g", "b", "b", {}, (0, 1, 2), None, ALONE))
    assert headline(plan, {group: [alone]}).startswith("Against the baseline, in accuracy: b better (+1.00")
    assert headline(plan, {group: [row([])]}) == "No run has finished yet."
    assert headline(plan, {group: [replace(row([]), seeds=2)]}).startswith("Nothing is compared")
