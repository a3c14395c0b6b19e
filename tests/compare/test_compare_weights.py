"""Variants of weights that were trained elsewhere: their runs train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_plan import new_plan, write

from kd_lightning import UsageError
from kd_lightning.compare.plan.artifacts import RESULT
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan
from kd_lightning.compare.run.training import Training
from kd_lightning.networks import MLP
from kd_lightning.weights import export_student

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def trained_elsewhere(folder: Path, *names: str) -> list[MLP]:
    """Networks whose files are beside the plan."""
    networks = [MLP(2352, [32]) for _ in names]
    for name, each in zip(names, networks, strict=True):
        export_student(each, folder / name)
    return networks


def plan_of(folder: Path, weights: Any) -> Plan:
    plan = new_plan()
    plan["groups"]["digits"]["variants"]["teacher"]["weights"] = weights
    return read_plan(write(folder, plan))


def test_students_take_turns_with_the_files(tmp_path: Path) -> None:
    trained_elsewhere(tmp_path, "a.safetensors", "b.safetensors")
    teacher, alone, both = plan_of(tmp_path, ["a.safetensors"]).variants
    assert (teacher.seeds, alone.seeds, both.seeds) == ((3,), (3, 4), (3, 4))
    assert [run.teacher and run.teacher.seed for run in both.runs] == [3, 3]
    teacher, _, both = plan_of(tmp_path, ["a.safetensors", "b.safetensors"]).variants
    assert [Path(run.weights or "").name for run in teacher.runs] == ["a.safetensors", "b.safetensors"]
    assert [run.teacher and run.teacher.seed for run in both.runs] == [3, 4]


def test_weights_are_measured_and_teach_as_those_of_a_run(tmp_path: Path) -> None:
    (elsewhere,) = trained_elsewhere(tmp_path, "a.safetensors")
    plan, root = plan_of(tmp_path, "a.safetensors"), tmp_path / "runs"
    teacher, _, both = (variant.runs[0] for variant in plan.variants)
    result = Training(teacher, root)(lambda _: None)
    assert (result["steps"], result["curve"], result["train_images"]) == (0, [], None)
    saved = torch.load(root / teacher.name / "last.ckpt", weights_only=True)["state_dict"]
    assert {name: value.tolist() for name, value in saved.items()} == {
        f"student.{name}": value.tolist() for name, value in elsewhere.state_dict().items()
    }
    taught = Training(both, root)(lambda _: None)
    assert taught["steps"] == 6
    assert 0 < taught["divergence"] < 5
    before = teacher.digest(root)
    trained_elsewhere(tmp_path, "a.safetensors")  # others, under the same name
    assert teacher.digest(root) != before
    assert (root / teacher.name / RESULT).is_file()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("b.safetensors", "variants.teacher: weights has 'b.safetensors', and there is no such file"),
        ("packaged:mnist/teacher-9", "packaged:mnist/teacher-9: no such weights; did you mean"),
        (["a.safetensors"] * 3, "weights has 3 files for 2 seeds"),
        ({"a": 1}, "weights is {'a': 1} and not files"),
    ],
)
def test_a_mistake_costs_one_line(weights: Any, message: str, tmp_path: Path) -> None:
    trained_elsewhere(tmp_path, "a.safetensors")
    with pytest.raises(UsageError) as error:
        plan_of(tmp_path, weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
