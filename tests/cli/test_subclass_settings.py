"""Subclasses in a user's own module: types, settings and required arguments come from their parents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from kd_lightning import OfflineDistiller, Term, UsageError
from kd_lightning.cli.components import inherit_annotations, parameters
from kd_lightning.cli.engine import build
from kd_lightning.losses import KDLoss


class Bare(OfflineDistiller):
    """Repeats its parent's arguments without their types."""

    def __init__(self, student, teacher, terms, alpha, lr_interval="epoch", gamma=1.0):
        super().__init__(student, teacher, terms, lr_interval=lr_interval)
        self.alpha, self.gamma = alpha, gamma


class PassesOn(OfflineDistiller):
    def __init__(self, beta: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.beta = beta


class PassesOnTwice(PassesOn):
    def __init__(self, *args: Any, delta: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.delta = delta


class WarmKD(KDLoss):
    def __init__(self, temperature, warmth=2.0):
        super().__init__(temperature * warmth)


def config(folder: Path, name: str, loss: Any = None, **settings: Any) -> list[str]:
    given = {
        "student": {"class_path": "StudentConvNet"},
        "teacher": {"class_path": "TeacherConvNet"},
        "terms": {"kd": {"loss": loss or {"class_path": "KDLoss"}}},
    }
    content = {
        "model": {"class_path": f"{__name__}.{name}", "init_args": given | settings},
        "data": {"class_path": "MNISTDataModule", "init_args": {"train_size": 64}},
        "trainer": {"default_root_dir": str(folder / "run"), "logger": False, "accelerator": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [f"--config={folder}/run.yaml"]


def test_arguments_without_types_have_those_of_the_parents(tmp_path):
    learner = build(config(tmp_path, "Bare", alpha=0.5, lr_interval="step")).model
    assert isinstance(learner, Bare)
    assert isinstance(learner.student, nn.Module)
    assert isinstance(learner.terms["kd"], Term)
    assert (learner.alpha, learner.gamma, learner.lr_interval) == (0.5, 1.0, "step")
    with pytest.raises(UsageError, match=r"run\.yaml:\d+: model\.lr_interval: expected 'step' or 'epoch', got steps"):
        build(config(tmp_path, "Bare", alpha=0.5, lr_interval="steps"))
    loss = {"class_path": f"{__name__}.WarmKD", "init_args": {"temperature": 3.0}}
    assert build(config(tmp_path, "PassesOn", loss)).model.terms["kd"].loss.temperature == 6.0


def test_a_required_argument_without_a_type_is_missing_and_not_none(tmp_path):
    with pytest.raises(UsageError, match=r"run\.yaml:1: model: alpha is missing: give it a value") as refusal:
        build(config(tmp_path, "Bare"))
    assert "\n" not in str(refusal.value)
    assert build(config(tmp_path, "Bare", alpha=None)).model.alpha is None  # said, and not left out


@pytest.mark.parametrize("name", ["PassesOn", "PassesOnTwice"])
def test_settings_behind_kwargs_are_the_parents(name: str, tmp_path):
    learner = build(config(tmp_path, name, beta=2.0, lr_interval="step")).model
    assert (learner.beta, learner.lr_interval) == (2.0, "step")
    for wrong, right in (
        ("lr_intervl", "lr_interval"),
        ("metric", "metrics"),
        ("bta", "beta"),
        ("optimzer", "optimizer"),
    ):
        with pytest.raises(UsageError, match=f"{name} has no such setting; did you mean '{right}'"):
            build(config(tmp_path, name, **{wrong: 1}))
    with pytest.raises(UsageError, match="has no such setting; there are 'beta'") as refusal:
        build(config(tmp_path, name, zzz=1))
    assert "'kwargs'" not in str(refusal.value)
    assert "'args'" not in str(refusal.value)


def test_parameters_follow_kwargs_and_only_these():
    names = parameters(f"{__name__}.PassesOnTwice")
    assert names[:2] == ["delta", "beta"]
    assert {"student", "terms", "optimizer", "metrics"} <= set(names)
    assert parameters(f"{__name__}.Bare") == ["student", "teacher", "terms", "alpha", "lr_interval", "gamma"]
    assert parameters("torch.optim.SGD")[:2] == ["params", "lr"]
    assert parameters("torch.optim.Nothing") == []


def test_what_has_no_parents_constructor_is_left_alone():
    for class_path in ("torch.nn.Linear", "torch.relu", "no.such.module", f"{__name__}.build"):
        inherit_annotations(class_path)
    assert nn.Linear.__init__.__annotations__["in_features"] is int
