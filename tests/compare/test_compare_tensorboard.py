"""TensorBoard's event files of a comparison, from runs that are made up here."""

from __future__ import annotations

import csv
import io
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import make_up
from rich.console import Console
from small_plan import new_plan, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.writer import SummaryWriter

from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan, Run
from kd_lightning.compare.report.curves import logged_curves, mean_curves
from kd_lightning.compare.report.page import write_report
from kd_lightning.compare.report.settings import differing_settings


def plan_of(folder: Path, content: dict[str, Any]) -> Plan:
    folder.mkdir(exist_ok=True)
    return read_plan(write(folder, content))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    content = new_plan()
    kd = {"loss": {"init_args": {"temperature": 4.0}}}
    content["groups"]["digits"]["variants"]["both"]["overrides"] = {"model": {"init_args": {"terms": {"kd": kd}}}}
    return plan_of(tmp_path / "files", content)


def report(plan: Plan, results: dict[Run, Any], root: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    write_report(plan, results, {}, {}, root, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def logged(root: Path, run: Run, tag: str) -> dict[int, float]:
    with (root / run.name / "metrics.csv").open(newline="") as stream:
        return {int(row["step"]): float(row[tag]) for row in csv.DictReader(stream) if row[tag]}


def hparams(folder: Path, tag: str) -> HParamsPluginData:
    content = events(folder).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return HParamsPluginData.FromString(content)


def test_a_variant_is_a_run_of_means_and_bands_over_its_seeds(plan: Plan, tmp_path: Path) -> None:
    report(plan, make_up(plan, tmp_path), tmp_path)
    runs = plan.variants[2].runs
    both = events(tmp_path / "tensorboard/digits/both")
    for tag in ("val/acc", "train/kd", "train/task", "temperature/kd"):
        seeds = [logged(tmp_path, run, tag) for run in runs]
        found = {part: both.Scalars(f"~band/{tag}_{part}") for part in ("low", "high")} | {"mean": both.Scalars(tag)}
        assert [point.step for point in found["mean"]] == sorted(seeds[0])
        for mean, low, high in zip(*(found[part] for part in ("mean", "low", "high")), strict=True):
            values = [seed[mean.step] for seed in seeds]
            assert mean.value == pytest.approx(statistics.fmean(values))
            assert high.value - mean.value == pytest.approx(statistics.stdev(values), abs=1e-5)
            assert mean.value - low.value == pytest.approx(statistics.stdev(values), abs=1e-5)
    assert not {"epoch", "step"} & set(both.Tags()["scalars"])


def test_custom_scalars_have_a_margin_chart_for_every_curve(plan: Plan, tmp_path: Path) -> None:
    report(plan, make_up(plan, tmp_path), tmp_path)
    [tensor] = events(tmp_path / "tensorboard/report").Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    charts = {
        category.title: [chart.margin.series[0].value for chart in category.chart] for category in layout.category
    }
    assert {title: sorted(tags) for title, tags in charts.items()} == {
        "Validation": ["val/acc", "val/nll"],
        "Training losses": ["train/kd", "train/task"],
        "Other": ["temperature/kd"],
    }
    available = set(events(tmp_path / "tensorboard/digits/both").Tags()["scalars"])
    series = [series for category in layout.category for chart in category.chart for series in chart.margin.series]
    assert all({each.value, each.lower, each.upper} <= available for each in series), "plain tags, no expressions"


def test_hparams_have_the_settings_that_differ_and_the_test_metrics(plan: Plan, tmp_path: Path) -> None:
    report(plan, make_up(plan, tmp_path), tmp_path)
    both = hparams(tmp_path / "tensorboard/digits/both", "session_start_info").session_start_info.hparams
    assert both["kd.temperature"].number_value == 4
    assert both["kd.weight"].number_value == 0.5
    texts = {key: both[key].string_value for key in ("group", "variant", "teacher", "model", "kd.loss")}
    assert texts == {
        "group": "digits",
        "variant": "both",
        "teacher": "digits/teacher",
        "model": "OfflineDistiller",
        "kd.loss": "KDLoss",
    }
    assert "data.batch_size" not in both, "all variants have the same"
    alone = hparams(tmp_path / "tensorboard/digits/alone", "session_start_info").session_start_info.hparams
    assert "kd.temperature" not in alone
    experiment = hparams(tmp_path / "tensorboard/report", "experiment").experiment
    assert {info.name for info in experiment.hparam_infos if info.differs} == {
        "kd.temperature",
        "kd.weight",
        "task.weight",
    }
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"test/acc", "test/nll", "test/calibration_error", "test/agreement", "test/divergence"}


def test_a_setting_of_several_types_becomes_text(tmp_path: Path) -> None:
    content = new_plan()
    variants = content["groups"]["digits"]["variants"]
    variants["alone"]["overrides"] = {"trainer": {"gradient_clip_val": 1.0, "deterministic": True}}
    variants["both"]["overrides"] = {"trainer": {"gradient_clip_val": "none", "deterministic": False}}
    settings = differing_settings(plan_of(tmp_path, content).variants)
    assert [each.get("trainer.gradient_clip_val") for each in settings] == [None, "1.0", "none"]
    assert [each.get("trainer.deterministic") for each in settings] == [None, True, False]


def test_the_report_is_a_text_and_its_pictures_are_images(plan: Plan, tmp_path: Path) -> None:
    report(plan, make_up(plan, tmp_path), tmp_path)
    found = events(tmp_path / "tensorboard/report")
    [tensor] = found.Tensors("report")
    assert "both terms against alone: " in tensor.tensor_proto.string_val[0].decode()
    [image] = found.Images("report/curves")
    assert image.encoded_image_string == (tmp_path / "curves.png").read_bytes()
    assert image.width > image.height > 100


def test_a_second_report_replaces_the_first_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    results, root = make_up(plan, tmp_path), tmp_path / "tensorboard"
    report(plan, results, tmp_path)
    for path in list(root.rglob("events*")):
        path.rename(path.with_name("events.out.tfevents.1.comparison"))  # as if it were old
    foreign = root / "digits/both/events.out.tfevents.1.someone"
    foreign.write_bytes(b"events")
    for run in plan.variants[0].runs:
        del results[run]
    for run in plan.variants[1].runs:
        results[run]["metrics"] = {"accuracy": 0.125}
    report(plan, results, tmp_path)
    folders = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())
    assert folders == ["digits", "digits/alone", "digits/both", "report"], "no run of the teacher is finished"
    old, new = sorted((root / "digits/alone").iterdir())
    assert (old.name, old.read_bytes()) == ("events.out.tfevents.1.comparison", b"")
    [test] = events(root / "digits/alone").Scalars("test/acc")
    assert test.value == 0.125
    new.rename(new.with_name("events.out.tfevents.2.comparison"))
    report(plan, results, tmp_path)
    assert not old.exists(), "no more than one old file stays"
    assert len(list((root / "digits/alone").iterdir())) == 2
    assert foreign.read_bytes() == b"events"


def test_one_seed_has_a_band_without_width_and_no_run_is_no_error(plan: Plan, tmp_path: Path) -> None:
    results = {run: result for run, result in make_up(plan, tmp_path).items() if run.seed == 3}
    report(plan, results, tmp_path)
    alone = events(tmp_path / "tensorboard/digits/alone")
    values = [[point.value for point in alone.Scalars(tag)] for tag in ("val/acc", "~band/val/acc_low")]
    assert values[0] == values[1]
    printed = report(plan, {}, tmp_path)
    assert "#timeseries" in printed
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["report"]


def test_seeds_of_different_lengths_are_averaged_where_all_have_values(tmp_path: Path) -> None:
    for seed, rows in enumerate(("10,1\n20,2\n30,9\n", "10,3\n20,6\n")):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "metrics.csv").write_text(f"step,val/mse\n{rows}")
    curves = mean_curves([tmp_path / "0", tmp_path / "1"])
    assert [(point.step, point.mean) for point in curves["val/mse"]] == [(10, 2.0), (20, 4.0)]


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_table_the_curves_come_from_the_event_files(damaged: bool, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "version_0")) as writer:
        writer.add_scalar("val/mse", 0.5, 7)
        writer.add_scalar("epoch", 1, 7)
    if damaged:
        (tmp_path / "metrics.csv").write_text("no table\n")
    assert logged_curves(tmp_path) == {"val/mse": {7: 0.5}}


def test_the_link_shows_one_group_in_colours_of_its_own(plan: Plan, tmp_path: Path) -> None:
    printed = report(plan, make_up(plan, tmp_path), tmp_path)
    assert "/?smoothing=0&runFilter=%5Edigits%2F&tagFilter=%5Eval%2F#timeseries  (digits)" in printed
    content = new_plan()
    content["groups"] |= dict.fromkeys(("v1.5", "letters"), content["groups"]["digits"])
    many = plan_of(tmp_path / "many", content)
    printed = report(many, make_up(many, tmp_path / "runs"), tmp_path / "runs")
    assert "&runColorGroup=regex%3A%28%5B%5E%2F%5D%2B%29%24#timeseries  (digits; the other groups" in printed


def test_the_event_files_are_written_without_torch() -> None:
    code = "import sys, kd_lightning.compare.report.event_files as f; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
