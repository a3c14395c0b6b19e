"""Tables and sentences, from results that are made up here."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import ttest_rel
from small_plan import new_plan, write

from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan, Run
from kd_lightning.compare.report.page import write_report
from kd_lightning.compare.report.summary import summarise

ACCURACIES = {
    "teacher": [0.98, 0.99, 0.985],
    "alone": [0.80, 0.82, 0.78],
    "both": [0.881, 0.902, 0.862],
    "even": [0.80, 0.81, 0.79],
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    content = new_plan()
    group = content["groups"]["digits"]
    group["seeds"] = [0, 1, 2]
    group["variants"]["even"] = {"config": "distilled.yaml", "teacher": "teacher"}
    return read_plan(write(tmp_path, content))


def result(run: Run) -> dict[str, Any]:
    accuracy = ACCURACIES[run.variant.name][run.seed]
    taught = run.teacher is not None
    return {
        "network": "large" if run.variant.name == "teacher" else "small",
        "start": f"weights {run.seed}",
        "train_images": 100 if taught else 55000,
        "accuracy": accuracy,
        "errors": round(10000 * (1 - accuracy)),
        "train_accuracy": 1.0,
        "nll": 0.5,
        "calibration_error": 0.01,
        "agreement": 0.9 if taught else None,
        "divergence": 0.2 if taught else None,
        "seconds": 4.0,
        "curve": [{"step": step, "accuracy": accuracy - 1 / step, "nll": 1.0} for step in (10, 20)],
    }


@pytest.fixture
def results(plan: Plan) -> dict[Run, dict[str, Any]]:
    return {run: result(run) for run in plan.runs}


STAT = {"parameters": 15562, "bytes": 62856, "flops": 1162944, "latency_1_ms": 0.2, "latency_64_ms": 2.5}
STATS = {"small": STAT | {"name": "Student"}, "large": STAT | {"name": "Teacher"}, "gone": STAT | {"name": "Unused"}}


def report(plan: Plan, results: dict[Run, Any], reasons: dict[Run, str], root: Path) -> str:
    """What is printed on 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    write_report(plan, results, reasons, STATS, root, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_row(plan: Plan, results: dict[Run, Any]) -> None:
    row = summarise(plan.variants[2], results)
    both, alone, teacher = ([100 * value for value in ACCURACIES[name]] for name in ("both", "alone", "teacher"))
    interval = ttest_rel(both, alone).confidence_interval(0.95)
    assert row.seeds == 3
    assert row.spreads["accuracy"].mean == pytest.approx(sum(both) / 3)
    assert row.spreads["errors"].mean == pytest.approx(10000 - sum(both) * 100 / 3)
    assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high))
    assert row.gap_closed == pytest.approx(100 * (sum(both) - sum(alone)) / (sum(teacher) - sum(alone)))
    assert math.isnan(summarise(plan.variants[0], results).spreads["agreement"].mean)
    assert math.isnan(summarise(plan.variants[0], results).gap_closed), "a teacher has no teacher"


def test_a_difference_is_over_the_seeds_that_both_have(plan: Plan, results: dict[Run, Any]) -> None:
    alone, both = plan.variants[1:3]
    del results[alone.runs[0]]
    del results[both.runs[1]]
    row = summarise(both, results)
    assert row.seeds == 2
    assert row.difference.pairs == 1
    assert row.difference.mean == pytest.approx(8.2)
    assert math.isnan(row.difference.low)


def test_conclusions_follow_the_intervals(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    report(plan, results, {}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "both terms against alone: better, +8.17 points [+8.02, +8.31] over 3 seeds, p < 0.001;" in text
    assert "even against alone: undecided, +0.00 points" in text
    assert "The 3 teachers (digits/teacher) learned from 55,000 labelled images, their students from 100." in text
    assert "Attention" not in text
    for run in plan.variants[2].runs:
        results[run] |= {"accuracy": results[run]["accuracy"] - 0.3, "start": "others"}
    for run in plan.variants[0].runs:
        results[run]["train_images"] = 100
    report(plan, results, {}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "both terms against alone: worse, -21.83 points" in text
    assert "learned from 100 labelled images, as did their students." in text
    assert "Attention: runs of one seed and one network did not start from the same weights." in text


def test_the_terminal_ends_with_the_answer(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    printed = " ".join(report(plan, results, {}, tmp_path).split())
    answer = (
        "What the teacher was worth, in accuracy: both terms better (+8.17 points [+8.02, +8.31]) and "
        "even undecided (+0.00 points [-2.48, +2.48])."
    )
    assert f"{answer} The page: " in printed
    assert f"**{answer}**" in (tmp_path / "table.md").read_text()


def test_a_seed_that_did_not_learn_is_named(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    results[plan.variants[2].runs[1]] |= {"accuracy": 0.12, "chance": 0.1135, "test_images": 10000}
    results[plan.variants[3].runs[2]] |= {"accuracy": 0.60}
    report(plan, results, {}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "- both terms, seed 1 did not learn: its accuracy is at chance (accuracy 12.00 %; the median" in text
    assert "- even, seed 2 is far from the other seeds (accuracy 60.00 %; the median of its variant's seeds" in text
    assert text.count(" include it.") == 2
    results[plan.variants[2].runs[1]] |= {"accuracy": math.nan, "nll": math.nan}
    report(plan, results, {}, tmp_path)
    assert "- both terms, seed 1 diverged: its accuracy is not finite" in (tmp_path / "table.md").read_text()


def test_terminal_markdown_and_csv_say_the_same(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    failed = plan.variants[3].runs[2]
    del results[failed]
    printed = report(plan, results, {failed: "terms.kd: is wrong"}, tmp_path)
    markdown = (tmp_path / "table.md").read_text()
    for text in (printed, markdown):
        for shown in (
            "80.00 ± 2.00",
            "+8.17 [",
            "Student",
            "15,562",
            "1,162,944",
            "digits/even/seed-2: terms.kd: is wrong",
        ):
            assert shown in text
        assert "even (2 of 3" in text
        assert "Unused" not in text
    assert max(map(len, printed.splitlines()[:10])) <= 80
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == ["teacher", "alone", "both", "even"]
    assert float(rows[2]["difference_mean"]) == pytest.approx(8.1667, abs=1e-4)
    assert rows[2]["teacher"] == "digits/teacher"
    assert rows[0]["agreement_mean"] == ""
    assert f"--logdir {tmp_path}/tensorboard" in printed


def test_runs_with_different_monitors_are_pointed_out(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    for run in plan.variants[2].runs:
        results[run] |= {"monitor": "f1", "metrics": {"f1": 0.5}}
    report(plan, results, {}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "Attention: the runs monitor different metrics (accuracy, f1); differences are of accuracy." in text
    assert "| f1 | seconds |" in text


def test_one_teacher_is_one(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    kept = {run: result for run, result in results.items() if run.seed == 0}
    report(plan, kept, {}, tmp_path)
    assert "- The teacher (digits/teacher) learned from 55,000" in (tmp_path / "table.md").read_text()


def test_curves_are_drawn(plan: Plan, results: dict[Run, Any], tmp_path: Path) -> None:
    report(plan, results, {}, tmp_path)
    png = (tmp_path / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    for run in plan.variants[2].runs:
        results[run]["curve"] = []
    report(plan, results, {}, tmp_path)
    assert (tmp_path / "curves.png").read_bytes() != png


def test_a_report_without_finished_runs_is_no_error(plan: Plan, tmp_path: Path) -> None:
    printed = report(plan, {}, dict.fromkeys(plan.runs, "not finished"), tmp_path)
    assert "not finished" in printed
    assert not (tmp_path / "curves.png").exists()
