"""Comparisons of any LightningModule: by its network, or by what it logs; with and without the drop-in callback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kd_lightning import UsageError
from kd_lightning.compare.plan.artifacts import Result
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.run.training import Training

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    "ignore:The '\\w+_dataloader' does not have many workers",
    "ignore:.*lr_find.*:UserWarning",
)

NETWORK = {"class_path": "kd_lightning.networks.MLP", "init_args": {"in_features": 6, "hidden": [16], "num_classes": 3}}
LOADS = {"network": NETWORK, "checkpoint": "named by the comparison"}
DROP_IN = {
    "class_path": "Distillation",
    "init_args": {
        "student": "net",
        "teacher": {"class_path": "kd_lightning.networks.load_teacher", "init_args": LOADS},
        "terms": {"kd": {"loss": {"class_path": "KDLoss", "init_args": {"temperature": 2.0}}, "weight": 0.5}},
    },
}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
THEIRS = {"model": {"class_path": "their_module.Theirs"}, "data": {"class_path": "their_module.Points"}}
TEACHER = THEIRS | {"model": {"class_path": "Classifier", "init_args": {"student": NETWORK}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(THEIRS))
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    yield tmp_path
    sys.modules.pop("their_module", None)


def plan_of(folder: Path, variants: dict[str, Any], **group: Any):
    content = {
        "overrides": {"trainer": {"max_epochs": 3} | QUIET},
        "groups": {"points": {"seeds": [0, 1], "baseline": "alone", "variants": variants, **group}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_plan(folder / "plan.yaml")


def results(folder: Path, variants: dict[str, Any], **group: Any) -> dict[str, Result]:
    """The result of each variant's first run."""
    plan, root = plan_of(folder, variants, **group), folder / "runs"
    return {each.name: Training(each.runs[0], root)(lambda _: None) for each in plan.variants}


def test_a_module_with_and_without_the_callback_is_measured_by_its_network_and_by_what_it_logs(folder: Path) -> None:
    variants = {
        "teacher": {"config": "teacher.yaml"},
        "alone": {"config": "theirs.yaml", "student": "net"},
        "taught": {
            "config": "theirs.yaml",
            "student": "net",
            "teacher": "teacher",
            "overrides": {"trainer": {"callbacks": [DROP_IN]}},
        },
    }
    found = results(folder, variants)
    alone, taught = found["alone"], found["taught"]
    assert alone["start"] == taught["start"]
    assert alone["network"] == taught["network"] != found["teacher"]["network"]
    assert (alone["monitor"], alone["mode"], alone["label_kind"]) == ("accuracy", "max", "classes")
    with np.load(folder / "runs/points/taught/seed-0/test.npz") as saved:
        assert saved["logits"].shape == (90, 3)
        assert taught["accuracy"] == (saved["logits"].argmax(1) == saved["target"]).mean()
    assert {"f1", "accuracy", "nll"} <= taught["metrics"].keys()
    assert [point.keys() for point in taught["curve"]] == [{"step", "f1"}] * 3
    assert alone["divergence"] is None
    assert taught["divergence"] > 0
    state = torch.load(folder / "runs/points/taught/seed-0/last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("net.") for name in state), "the teacher is in no checkpoint"


def test_a_module_without_a_named_network_is_compared_by_the_metric_that_it_logs(folder: Path) -> None:
    found = results(folder, {"alone": {"config": "theirs.yaml"}}, monitor="val_f1", mode="max")["alone"]
    assert (found["monitor"], found["mode"], found["label_kind"]) == ("f1", "max", "none")
    assert found["metrics"].keys() == {"f1"}
    assert "accuracy" not in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name in the compare file its network, as `student: net`, or a metric"),
        ({"student": "nett"}, "student='nett': Theirs has no such network; did you mean 'net'?"),
        ({"monitor": "val_f2", "mode": "max"}, "monitor='val_f2': the test has no metric 'f2'; there is 'f1'"),
        ({"weights": "plan.yaml"}, "name the network of your module that they belong to, as `student: net`"),
    ],
)
def test_what_cannot_be_measured_costs_one_line(given: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "plan.yaml").touch()
    with pytest.raises(UsageError) as error:
        results(folder, {"alone": {"config": "theirs.yaml", **given}})
    assert message in str(error.value)


def test_a_learner_has_no_network_to_name(folder: Path) -> None:
    with pytest.raises(UsageError, match="student='net' is for modules of your own"):
        results(folder, {"alone": {"config": "teacher.yaml", "student": "net"}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"monitor": "val_f1"}, "monitor and mode belong together: add mode: max if"),
        ({"mode": "max"}, "monitor and mode belong together: add monitor"),
        ({"monitor": "val_f1", "mode": "best"}, "mode is 'best': max if a larger value of val_f1 is better"),
    ],
)
def test_a_monitor_has_a_direction(given: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(folder, {"alone": {"config": "theirs.yaml", **given}})
