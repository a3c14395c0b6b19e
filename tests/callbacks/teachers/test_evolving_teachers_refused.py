"""What evolving teachers refuse, and the numbers of their shipped configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from kd_lightning import OfflineDistiller
from kd_lightning.callbacks import (
    BornAgain,
    EMATeacher,
    SnapshotTeacher,
    TeacherCache,
    TeacherFreezing,
)
from kd_lightning.cli.configs import SHIPPED
from tests import toys
from tests.callbacks.teachers.twins import momentum, run, snapshot, twins

# ---- what is refused


def shared() -> OfflineDistiller:
    """One module that both hold, without a parameter that `OfflineDistiller` could find."""
    network = nn.Sequential(nn.Flatten())
    return OfflineDistiller(network, network, toys.terms())


@pytest.mark.parametrize("kind", [EMATeacher, lambda: SnapshotTeacher(1), lambda: BornAgain(1)])
@pytest.mark.parametrize(
    ("learner", "complaint"),
    [
        (
            toys.offline,
            r"'teacher' cannot be made from 'student': Sequential has 2.weight \(16, 147\) and Sequential has",
        ),
        (toys.classifier, "Classifier has no network 'teacher' for .*; the nearest names are"),
        (shared, "share parameters, and there is nothing to learn from: build the teacher as a separate network"),
    ],
)
def test_networks_that_are_no_pair_are_refused(kind, learner, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        toys.trainer(tmp_path, kind()).fit(learner(), toys.data())


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (TeacherFreezing(), "SnapshotTeacher changes 'teacher' during the fit, and TeacherFreezing needs it"),
        (TeacherCache(), "SnapshotTeacher changes 'teacher' during the fit, and TeacherCache needs it"),
        (EMATeacher(), "changes 'teacher' during the fit, and (EMATeacher|SnapshotTeacher) needs it"),
    ],
)
def test_callbacks_that_rely_on_the_teacher_are_refused(other, complaint, tmp_path):
    for callbacks in ([other, SnapshotTeacher(1)], [SnapshotTeacher(1), other]):
        with pytest.raises(ValueError, match=complaint):
            toys.trainer(tmp_path, *callbacks).fit(twins(), toys.data(augmentation=None))


def test_freezing_another_network_is_not_refused(tmp_path):
    case = snapshot()
    learner = case.learner
    before, first = toys.weights(learner), toys.weights(learner.teacher)
    run(case._replace(callbacks=[*case.callbacks, TeacherFreezing("student.2")]), tmp_path, max_epochs=1)
    changed = {
        name for name, value in toys.weights(learner).items() if name in before and not value.equal(before[name])
    }
    assert "student.6.weight" in changed
    assert not [name for name in changed if name.startswith("student.2.")]
    assert not toys.same(toys.weights(learner.teacher), first)


def test_an_average_in_half_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'teacher' is in torch.bfloat16, in which an average does not change"):
        run(momentum(), tmp_path, precision="bf16-true")


def test_a_generation_cut_short_is_refused_and_a_short_run_is_not(tmp_path):
    with pytest.raises(ValueError, match="max_epochs=3 ends within a generation: make it a multiple of epochs_per"):
        run(toys.Case(twins(), [BornAgain(2)]), tmp_path)
    run(toys.Case(twins(), [BornAgain(5)]), tmp_path, max_epochs=1)


class Scaled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 784, 10))
        self.scale = nn.Parameter(torch.ones(()))


def test_what_cannot_be_born_again_is_refused(tmp_path):
    learner = OfflineDistiller(Scaled(), Scaled(), toys.terms())
    with pytest.raises(ValueError, match=r"'student' cannot be reinitialized: give its class Scaled,.* reset_param"):
        toys.trainer(tmp_path, BornAgain(1)).fit(learner, toys.data())


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: EMATeacher(1.0), r"momentum=1.0 must lie in \[0, 1\)"),
        (lambda: EMATeacher(-0.1), r"momentum=-0.1 must lie"),
        (lambda: SnapshotTeacher(0), "interval=0 must be at least 1"),
        (lambda: SnapshotTeacher(1, "batch"), "unit='batch' is neither 'step' nor 'epoch'"),
        (lambda: BornAgain(0), "epochs_per_generation=0 must be at least 1"),
    ],
)
def test_times_that_make_no_sense_are_refused(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


# ---- the shipped configurations


def shipped(name: str) -> tuple[dict, dict[str, dict]]:
    config = yaml.safe_load((Path(SHIPPED) / f"self/{name}.yaml").read_text())
    callbacks = [(item["class_path"], item["init_args"]) for item in config["trainer"]["callbacks"]]
    return config, {args.get("term", name): args.get("schedule", {}).get("init_args", args) for name, args in callbacks}


def test_ps_kd_has_the_papers_weights():
    config, callbacks = shipped("ps_kd")
    epochs = config["trainer"]["max_epochs"]
    shares = [0.0, *(0.8 * t / epochs for t in range(2, epochs + 1))]
    assert callbacks["past"]["values"] == pytest.approx(dict(enumerate(shares)))
    assert callbacks["task"]["values"] == pytest.approx({epoch: 1 - share for epoch, share in enumerate(shares)})


def test_the_cycles_of_snapshot_are_whole_epochs_of_everything():
    config, callbacks = shipped("snapshot")
    cycle = callbacks["SnapshotTeacher"]["interval"]
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"]["T_0"] == cycle
    assert cycle * 3 == 55000 // config["data"]["init_args"]["batch_size"] * config["trainer"]["max_epochs"]
    softness = config["model"]["init_args"]["terms"]["kd"]["loss"]["init_args"]["teacher_temperature"]
    assert callbacks["task"]["values"] == {0: 1.0, cycle: 1 + 1 / softness}
    assert callbacks["kd"]["values"] == {0: 0.0, cycle: 1.0}


def test_the_generations_of_born_again_change_with_their_terms():
    config, callbacks = shipped("born_again")
    epochs = callbacks["BornAgain"]["epochs_per_generation"]
    assert config["trainer"]["max_epochs"] == 3 * epochs
    assert callbacks["task"]["values"] == {0: 1.0, epochs: 0.0}
    assert callbacks["kd"]["values"] == {0: 0.0, epochs: 1.0}
