"""Comparisons of a user's data: real values, several labels, and two named test loaders."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ttest_rel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_lightning.__main__ import main
from kd_lightning.cli.engine import build

# Lightning's command line uses what jsonargparse has renamed
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.xdist_group("a comparison of user data"),  # whose runs are made once
]

SEEDS = (0, 1, 2)


def network(outputs: int, width: int) -> dict[str, Any]:
    arguments = {"in_features": 6, "hidden": [width], "num_classes": outputs}
    return {"class_path": "kd_lightning.networks.MLP", "init_args": arguments}


def learner(task: str, outputs: int, width: int = 3, lr: float = 0.02) -> dict[str, Any]:
    terms = {"task": {"loss": {"class_path": task}, "teacher": None}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr}}
    arguments = {"student": network(outputs, width), "terms": terms, "optimizer": optimizer}
    return {"class_path": "Classifier", "init_args": arguments}


def data(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": "user_data.Measurements", "init_args": {"kind": kind, **arguments}}


def distilled() -> dict[str, Any]:
    model = learner("user_data.SquaredError", 1)
    arguments = model["init_args"]
    loads = {"network": network(1, 32), "checkpoint": "named by the comparison"}
    arguments["teacher"] = {"class_path": "kd_lightning.networks.load_teacher", "init_args": loads}
    arguments["terms"]["kd"] = {"loss": {"class_path": "user_data.SquaredDifference"}, "weight": 2.0}
    return model | {"class_path": "OfflineDistiller"}


FILES: dict[str, dict[str, Any]] = {
    "large.yaml": {"model": learner("user_data.SquaredError", 1, width=32), "data": data("values")},
    "small.yaml": {"model": learner("user_data.SquaredError", 1), "data": data("values")},
    "taught.yaml": {"model": distilled(), "data": data("values")},
    "labels.yaml": {"model": learner("user_data.SeveralLabels", 3), "data": {"class_path": "user_data.ThreeLabels"}},
    "classes.yaml": {"model": learner("TaskLoss", 3), "data": data("classes", named_loaders=True)},
}
FASTER = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.1}}}}}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}
PLAN: dict[str, Any] = {
    "title": "A user's data",
    "overrides": {"trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 2} | QUIET},
    "groups": {
        "values": {
            "seeds": list(SEEDS),
            "baseline": "alone",
            "variants": {
                "teacher": {"config": "large.yaml", "overrides": {"trainer": {"max_epochs": 20}}},
                "alone": {"config": "small.yaml"},
                "taught": {"config": "taught.yaml", "teacher": "teacher"},
            },
        },
        "labels": {
            "seeds": list(SEEDS[:2]),
            "baseline": "slow",
            "variants": {"slow": {"config": "labels.yaml"}, "fast": {"config": "labels.yaml", "overrides": FASTER}},
        },
        "loaders": {"seeds": [0], "variants": {"both": {"config": "classes.yaml"}}},
    },
}


class Comparison(NamedTuple):
    root: Path
    code: int

    def result(self, run: str) -> dict[str, Any]:
        return json.loads((self.root / run / "result.json").read_text())

    def section(self, group: str) -> list[str]:
        parts = (self.root / "table.md").read_text().split("\n## ")
        return next(part.splitlines() for part in parts if part.startswith(f"{group}\n"))

    def row(self, group: str, variant: str) -> dict[str, str]:
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in self.section(group) if line[:1] == "|"]
        found = next(line for line in lines if line[0] == variant)
        return dict(zip(lines[0], found, strict=True))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder, patch = tmp_path_factory.mktemp("theirs"), pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent))
    for name, content in (FILES | {"plan.yaml": PLAN}).items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    with patch.context():
        code = main(
            ["compare", "--config", str(folder / "plan.yaml"), "--root", str(folder / "runs"), "--processes", "0"]
        )
    sys.modules.pop("user_data", None)
    return Comparison(folder / "runs", code)


def outputs(comparison: Comparison, run: str, loader: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and labels of a run's last weights on a test loader, or on all of them."""
    built = build(["--config", str(comparison.root / run / "config.yaml")])
    checkpoint = torch.load(comparison.root / run / "last.ckpt", weights_only=True)
    built.model.load_state_dict(checkpoint["state_dict"])
    built.model.eval()
    built.datamodule.setup("test")
    loaders = built.datamodule.test_dataloader()
    named = loaders if isinstance(loaders, dict) else {"": loaders}
    chosen = [named[loader]] if loader else named.values()
    batches = [batch for each in chosen for batch in each]
    with torch.no_grad():
        return torch.cat([built.model(x) for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.fixture(autouse=True)
def their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_everything_is_run(comparison: Comparison) -> None:
    assert comparison.code == 0


def test_real_values_are_measured_by_the_metrics_of_the_learner(comparison: Comparison) -> None:
    result = comparison.result("values/taught/seed-1")
    predicted, target = outputs(comparison, "values/taught/seed-1")
    assert (result["monitor"], result["mode"], result["label_kind"]) == ("mse", "min", "values")
    assert result["metrics"]["mse"] == pytest.approx((predicted - target).square().mean().item(), rel=1e-5)
    assert result["metrics"]["mae"] == pytest.approx((predicted - target).abs().mean().item(), rel=1e-5)
    assert not {"accuracy", "errors", "nll", "calibration_error"} & set(result)
    assert [set(point) for point in result["curve"]] == [{"step", "mse", "mae"}] * 2
    with np.load(comparison.root / "values/taught/seed-1/test.npz") as saved:
        assert np.allclose(saved["logits"], predicted, atol=1e-6)


def test_less_of_an_error_is_better(comparison: Comparison) -> None:
    found = {
        name: [comparison.result(f"values/{name}/seed-{seed}")["metrics"]["mse"] for seed in SEEDS]
        for name in ("teacher", "alone", "taught")
    }
    teacher, alone, taught = (float(np.mean(found[name])) for name in ("teacher", "alone", "taught"))
    assert teacher < alone, "else there is no gap to close"
    row = comparison.row("values", "teacher")
    assert list(row)[:5] == ["", "mse", "difference", "against", "gap, %"]
    assert {"mae", "seconds"} < set(row)
    assert not {"accuracy, %", "errors", "ECE, %"} & set(row)
    interval = ttest_rel(found["teacher"], found["alone"]).confidence_interval(0.95)
    assert interval.high < 0, "the case is about a measurable difference"
    shown = f"{teacher - alone:+.4g} [{interval.low:+.4g}, {interval.high:+.4g}]"
    assert row["difference"] == shown
    assert comparison.row("values", "taught")["gap, %"] == f"{100 * (alone - taught) / (alone - teacher):.0f}"
    number = re.escape(f"{teacher - alone:+.4g}")
    sentence = rf"teacher against alone: better, {number} mse \[\S+, \S+\] \(lower is better\) over 3 seeds"
    assert re.search(sentence, "\n".join(comparison.section("values")))
    assert "lower is better for mse" in (comparison.root / "table.md").read_text()


def test_several_labels_are_measured_by_their_own_accuracy(comparison: Comparison) -> None:
    result = comparison.result("labels/fast/seed-1")
    logits, target = outputs(comparison, "labels/fast/seed-1")
    assert (result["monitor"], result["mode"], result["label_kind"]) == ("accuracy", "max", "multilabel")
    right = ((logits > 0) == (target > 0.5)).double().mean().item()
    assert result["metrics"]["accuracy"] == pytest.approx(right, rel=1e-6)
    row = comparison.row("labels", "fast")
    assert list(row) == ["", "accuracy, %", "difference", "against", "gap, %", "NLL", "seconds"]
    values = [100 * comparison.result(f"labels/fast/seed-{seed}")["metrics"]["accuracy"] for seed in SEEDS[:2]]
    assert row["accuracy, %"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert re.search(r"points \[\S+, \S+\] over 2 seeds", "\n".join(comparison.section("labels")))


def test_named_loaders_have_columns_of_their_own(comparison: Comparison) -> None:
    run, row = "loaders/both/seed-0", comparison.row("loaders", "both")
    metrics = comparison.result(run)["metrics"]
    for loader in (None, "near", "far"):
        logits, target = outputs(comparison, run, loader)
        accuracy = (logits.argmax(1) == target).double().mean().item()
        key, heading = (
            ("accuracy", "accuracy, %") if loader is None else (f"accuracy/{loader}", f"accuracy ({loader}), %")
        )
        assert metrics[key] == pytest.approx(accuracy, rel=1e-6)
        assert row[heading] == f"{100 * accuracy:.2f}"
    assert metrics["nll/near"] != metrics["nll/far"]
    assert {"errors", "NLL", "ECE, %", "NLL (near)", "NLL (far)"} < set(row)
    assert comparison.result(run)["test_images"] == 80


def test_tensorboard_and_the_file_of_numbers_follow_the_metrics(comparison: Comparison) -> None:
    events = EventAccumulator(str(comparison.root / "values/taught/seed-0")).Reload()
    assert {"test/mse", "test/mae", "val/mse"} <= set(events.Tags()["scalars"])
    means = {
        variant: set(EventAccumulator(str(comparison.root / "tensorboard" / variant)).Reload().Tags()["scalars"])
        for variant in ("values/taught", "labels/fast", "loaders/both")
    }
    assert {"test/mse", "test/mae", "val/mse", "~band/val/mse_low", "train/kd"} <= means["values/taught"]
    assert {"test/acc", "test/acc/near", "test/nll/far", "test/calibration_error"} <= means["loaders/both"]
    assert any(tag.startswith("test/") for tag in means["labels/fast"])
    charts = next((comparison.root / "tensorboard/report").glob("events*")).read_bytes()
    assert all(tag in charts for tag in (b"val/mse", b"val/acc", b"val/nll", b"train/task", b"train/kd"))
    header, *lines = (comparison.root / "table.csv").read_text().splitlines()
    assert {"mse_mean", "mae_mean", "accuracy_mean", "accuracy/near_mean", "difference_mean"} < set(header.split(","))
    of_taught = dict(zip(header.split(","), lines[2].split(","), strict=True))
    assert (of_taught["monitor"], of_taught["mode"], of_taught["accuracy_mean"]) == ("mse", "min", "")
    assert float(of_taught["mse_mean"]) > 0


def test_networks_of_any_data_are_measured_and_timed(comparison: Comparison) -> None:
    costs = json.loads((comparison.root / "networks.json").read_text()).values()
    # 6 inputs, a hidden layer, and as many outputs as labels
    assert sorted(each["parameters"] for each in costs) == [7 * 3 + 4, 7 * 3 + 4 * 3, 7 * 32 + 33]
    assert all(each["latency_64_ms"] > 0 for each in costs)
