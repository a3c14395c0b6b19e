"""The page and the files of numbers, from outputs that are made up."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_outputs import NETWORKS, ROWS, make_up
from rich.console import Console
from small_plan import new_plan, write

from kd_lightning.compare.measure.classification import calibration_error
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan, Run
from kd_lightning.compare.report.page import write_report
from kd_lightning.compare.report.tested import describe, read_outputs
from kd_lightning.compare.report.web.gallery import galleries

EVIL = "<script>alert('x')</script> & \"quotes\" {{ 1 + 1 }} 50 % of a_b"


class Parts(HTMLParser):
    """Collects the elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def plan_of(folder: Path, **changes: Any) -> Plan:
    content = new_plan()
    content["groups"]["digits"]["seeds"] = [0, 1, 2]
    content["groups"]["digits"] |= changes
    return read_plan(write(folder, content))


def page_of(plan: Plan, results: dict[Run, Any], root: Path, reasons: dict[Run, str] | None = None) -> Parts:
    console = Console(file=io.StringIO(), width=80)
    write_report(plan, results, reasons or {}, NETWORKS, root, console, "kd-lightning compare --config plan.yaml")
    return Parts((root / "report.html").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a comparison with its page."""
    folder = tmp_path_factory.mktemp("page")
    plan = plan_of(folder)
    page_of(plan, make_up(plan, folder), folder)
    return folder


def test_a_page_of_class_labels_has_all_parts(root: Path) -> None:
    page = Parts((root / "report.html").read_text())
    for part in (
        "What the teacher was worth, in accuracy: both terms",
        "Learning curves",
        "What a network costs",
        "agreement with the teacher",
        "Classes and calibration",
        "Softened predictions",
        "Confusions",
        "What only the student with a teacher gets right",
        "Settings that differ",
        "kd-lightning compare --config plan.yaml --report-only",
    ):
        assert part in page.text
    described = " ".join(attributes.get("aria-label", "") for attributes in page.of("svg"))
    for figure in (
        "Test accuracy of each seed. teacher: seed 0: 95.00",
        "Validation NLL by training step",
        "Test accuracy against FLOPs for one input",
        "Differences of accuracy by class",
        "Accuracy against confidence",
        "At temperature 8",
        "Agreement with the teacher: alone",
    ):
        assert figure in described
    assert "+20.00 [" in page.text


def test_the_page_asks_for_nothing(root: Path) -> None:
    source = (root / "report.html").read_text()
    page = Parts(source)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.findall(r"url\((?!#)|@import|https?://", source)


def test_the_page_is_drawn_without_torch() -> None:
    code = "import sys, kd_lightning.compare.report.web.render; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_within_the_page_are_unique(tmp_path: Path) -> None:
    content = new_plan()
    content["groups"]["again"] = content["groups"]["digits"]
    plan = read_plan(write(tmp_path, content))
    page = page_of(plan, make_up(plan, tmp_path), tmp_path)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names)) > 10
    targets = {attributes["href"] for attributes in page.of("a")} - {"#"}
    assert targets <= {f"#{name}" for name in names}


def test_texts_of_users_are_escaped(tmp_path: Path) -> None:
    content = new_plan()
    content["title"] = content["notes"] = EVIL
    group = content["groups"]["digits"]
    group |= {"title": EVIL, "notes": EVIL}
    group["variants"]["both"]["title"] = EVIL
    plan = read_plan(write(tmp_path, content))
    results = make_up(plan, tmp_path)
    failed = plan.variants[2].runs[0]
    del results[failed]
    page = page_of(plan, results, tmp_path, {failed: EVIL})
    assert not page.of("script")
    assert page.text.count("<script>alert('x')</script> & \"quotes\" {{ 1 + 1 }}") > 8
    assert r"\{\{ 1 + 1 \}\} 50 \% of a\_b" in (tmp_path / "table.tex").read_text()


@pytest.mark.parametrize("kind", ["values", "binary"])
def test_other_labels_have_no_parts_of_classes(kind: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    results = make_up(plan, tmp_path)
    for run, result in results.items():
        for key in ("accuracy", "errors", "nll", "calibration_error", "chance", "train_accuracy"):
            del result[key]
        error = 0.5 - 0.1 * (run.teacher is not None)
        result |= {"label_kind": kind, "monitor": "mse", "mode": "min", "metrics": {"mse": error, "mae": 0.7}}
        result["curve"] = [{"step": 10, "mse": 0.9}, {"step": 20, "mse": error}]
    page = page_of(plan, results, tmp_path)
    assert "What the teacher was worth, in mse: both terms better (-0.1 mse [-0.1, -0.1])." in page.text
    assert "mae difference" in page.text
    for part in ("Confusions", "calibration", "Softened", "gets right"):
        assert part not in page.text.partition("How to read")[0]


def test_plans_with_little_in_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=[0])
    results = make_up(plan, tmp_path, images=False)
    page = page_of(plan, results, tmp_path)
    assert "both terms undecided (+20.00 points, one seed)" in page.text
    assert "gets right" in page.text
    assert not page.of("img")
    (tmp_path / plan.runs[0].name / "test.npz").write_bytes(b"damaged")
    (tmp_path / plan.runs[1].name / "test.npz").write_bytes(b"")
    assert "Confusions" in page_of(plan, results, tmp_path).text
    nothing = page_of(plan, {}, tmp_path, dict.fromkeys(plan.runs, "not finished"))
    assert "No run has finished yet." in nothing.text
    assert "digits/teacher/seed-0, digits/alone/seed-0, digits/both/seed-0: not finished" in nothing.text
    alone = {"alone": {"config": "alone.yaml"}}
    plan = plan_of(tmp_path, variants=alone)
    assert "Nothing is compared" in page_of(plan, make_up(plan, tmp_path), tmp_path).text


def test_curves_of_different_lengths_share_their_steps(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    results = make_up(plan, tmp_path)
    results[plan.variants[1].runs[0]]["curve"].append({"step": 30, "accuracy": 0.1, "nll": 3.0})
    page = page_of(plan, results, tmp_path)
    assert any("alone ends at 54.44" in each.get("aria-label", "") for each in page.of("svg"))


def test_numbers_of_each_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    results = make_up(plan, tmp_path)
    failed = plan.variants[2].runs[2]
    del results[failed]
    page_of(plan, results, tmp_path, {failed: "out of memory"})
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    [accuracy] = [row for row in rows if (row["variant"], row["seed"], row["measure"]) == ("both", "1", "accuracy")]
    assert float(accuracy["value"]) == 47 / 60
    assert accuracy["teacher"] == "digits/teacher/seed-1"
    assert [row["unfinished"] for row in rows if row["unfinished"]] == ["out of memory"]
    table = (tmp_path / "table.tex").read_text()
    assert table.count(r"\toprule") == table.count(r"\bottomrule") == 1
    lines = [line for line in table.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in lines} == {6}
    assert r"both terms & $79.17 \pm 1.18$ & $+20.00\ [+20.00, +20.00]$" in table


def test_predictions_are_counted() -> None:
    draw = np.random.default_rng(0)
    logits, target = draw.normal(0, 2, (500, 4)).astype(np.float32), draw.integers(0, 4, 500)
    tested = describe(logits, target)
    count, confidence, right = tested.reliability
    assert count.sum() == tested.confusion.sum() == 500
    error = np.abs(right - confidence).sum() / 500
    assert error == pytest.approx(calibration_error(torch.from_numpy(logits), torch.from_numpy(target)))
    assert tested.softened.sum(axis=1) == pytest.approx(1)
    assert (np.diff(tested.softened, axis=1) <= 0).all()
    expected = [(logits[target == i].argmax(axis=1) == i).mean() for i in range(4)]
    assert tested.class_accuracy == pytest.approx(np.array(expected))


def test_the_gallery_shows_what_only_the_taught_student_gets_right(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    results = make_up(plan, tmp_path)
    [gallery] = galleries(plan.groups[0], read_outputs(plan, results, tmp_path), tmp_path)
    # alone is right on rows below 36, 35, 36, both terms on rows below 48, 47, 48
    assert (gallery.gained, gallery.lost) == (12, 0)
    assert sorted(shown.row for shown in gallery.images) == list(range(36, 48))
    assert all((shown.label + 1) % 3 == shown.without for shown in gallery.images)
    np.savez(tmp_path / "digits" / "test_images.npz", images=np.zeros((ROWS, 3, 4, 4), np.uint8), target=np.zeros(ROWS))
    [gallery] = galleries(plan.groups[0], read_outputs(plan, results, tmp_path), tmp_path)
    assert not gallery.images, "the images are those of other labels"


def test_many_classes_have_a_list_in_place_of_a_matrix(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    results = make_up(plan, tmp_path)
    for run in plan.runs:
        target = np.arange(ROWS) % 30
        logits = np.eye(30, dtype=np.float32)[np.where(target == 7, 8, target)]
        np.savez(tmp_path / run.name / "test.npz", logits=logits, target=target)
    assert "7 as 8: 100.0 %" in page_of(plan, results, tmp_path).text
