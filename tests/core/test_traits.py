"""A callback or scheme that declares a trait is treated as ours are, whatever its class."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from kd_lightning import Classifier, OfflineDistiller
from kd_lightning.callbacks import (
    Distillation,
    EMATeacher,
    FastLoop,
    SnapshotTeacher,
    TeacherCache,
    TeacherFreezing,
    TermWeightSchedule,
)
from kd_lightning.callbacks.schedules.functions import Constant
from kd_lightning.cli.run_dir import add_default_callbacks
from kd_lightning.core.traits import SchemeTraits, has_trait, is_idle_hook, steps_are_alike
from tests import found, toys


class ChangesTeacher(Callback):
    changes_teacher = True


class ChangesTheTeacherNamed(ChangesTeacher):
    def __init__(self, teacher_path: str) -> None:
        self.teacher_path = teacher_path


class NeedsFixedTeacher(Callback):
    needs_fixed_teacher = True


class NeedsFixed(NeedsFixedTeacher):
    def __init__(self, teacher_path: str) -> None:
        self.teacher_path = teacher_path


def twins() -> OfflineDistiller:
    return OfflineDistiller(toys.network(seed=1), toys.network(seed=2), toys.terms())


def fit(folder, *callbacks, learner=None, **changes):
    data = toys.data(augmentation=None)
    toys.trainer(folder, *callbacks, **{"max_epochs": 1} | changes).fit(learner or twins(), data)


@pytest.mark.parametrize(
    ("one", "other", "complaint"),
    [
        (
            ChangesTeacher,
            lambda: SnapshotTeacher(1),
            "(ChangesTeacher|SnapshotTeacher) changes .*teacher.* during the fit",
        ),
        (ChangesTeacher, TeacherFreezing, "ChangesTeacher changes the teacher .* TeacherFreezing needs it"),
        (ChangesTeacher, TeacherCache, "ChangesTeacher changes the teacher .* TeacherCache needs it"),
        (lambda: ChangesTheTeacherNamed("teacher"), TeacherFreezing, "changes 'teacher' .* TeacherFreezing needs it"),
        (NeedsFixedTeacher, EMATeacher, "EMATeacher changes 'teacher' .* NeedsFixedTeacher needs it"),
        (lambda: NeedsFixed("teacher"), EMATeacher, "EMATeacher changes 'teacher' .* NeedsFixed needs it"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_foreign_callback_and_one_of_ours_that_exclude_each_other_are_refused(
    one, other, complaint, turned, tmp_path
):
    pair = [one(), other()]
    with pytest.raises(ValueError, match=complaint):
        fit(tmp_path, *(pair[::-1] if turned else pair))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: ChangesTheTeacherNamed("student.2"), TeacherFreezing),
        (lambda: NeedsFixed("student.2"), EMATeacher),
        (lambda: NeedsFixed("no.such.network"), EMATeacher),
        (NeedsFixedTeacher, TeacherFreezing),
        (NeedsFixedTeacher, TeacherCache),
        (Callback, EMATeacher),
    ],
)
def test_callbacks_that_are_about_other_networks_get_along(one, other, tmp_path):
    fit(tmp_path, one(), other())


def test_a_teacher_that_no_module_has_excludes_nobody(tmp_path):
    fit(tmp_path, ChangesTeacher(), TeacherFreezing(), learner=toys.classifier())


@pytest.mark.parametrize("declares", [True, False])
def test_the_drop_in_lets_a_foreign_callback_change_its_teacher_between_runs(declares, tmp_path):
    class Changes(Callback):
        changes_teacher = declares

    def run(seed, ckpt_path=None):
        drop_in = Distillation("student", toys.network(seed=seed), {"kd": toys.terms()["kd"]})
        trainer = toys.trainer(tmp_path, drop_in, Changes(), max_epochs=1 if ckpt_path is None else 2)
        trainer.fit(Classifier(toys.network(seed=1)), toys.data(augmentation=None), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "run.ckpt")

    run(seed=2)
    if declares:
        run(seed=3, ckpt_path=tmp_path / "run.ckpt")
    else:
        with pytest.raises(ValueError, match="started with another teacher"):
            run(seed=3, ckpt_path=tmp_path / "run.ckpt")


def test_the_command_line_holds_no_teacher_that_a_foreign_callback_changes(tmp_path):
    def kinds(*given):
        found = add_default_callbacks([*given], tmp_path, twins(), checkpoints=False, progress_bar=False)
        return [type(callback) for callback in found]

    assert TeacherFreezing in kinds()
    assert TeacherFreezing in kinds(NeedsFixedTeacher())
    assert TeacherFreezing not in kinds(ChangesTeacher())


# ---- the fast loop


class Hooked(Callback):
    """Counts the hooks around and inside a step."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_start(self, *args):
        self.calls += 1

    on_after_backward = on_train_batch_end = on_train_batch_start


class Idle(Hooked):
    idle_when_frozen = True


class IdleButForOne(Idle):
    def on_train_batch_end(self, *args):
        self.calls += 100


class IdleByItsArguments(Hooked):
    def __init__(self) -> None:
        super().__init__()
        self.idle_when_frozen = True


def test_idle_hooks_of_a_foreign_callback_are_skipped_and_overridden_ones_are_not(tmp_path):
    """In Lightning's own steps, the first and the last at least, every hook is called."""
    given = Hooked(), Idle(), IdleButForOne(), IdleByItsArguments()
    fit(tmp_path, *given, FastLoop(), learner=toys.classifier(), max_steps=4, log_every_n_steps=50)
    hooked, idle, but_for_one, by_arguments = (callback.calls for callback in given)
    lightnings = idle // 3
    assert 0 < lightnings < 4
    assert hooked == 3 * 4
    assert idle == by_arguments == 3 * lightnings
    assert but_for_one == 2 * lightnings + 4 * 100


def test_a_hook_on_the_instance_is_not_idle():
    idle = Idle()
    assert is_idle_hook(idle, "on_after_backward")
    idle.on_after_backward = lambda *args: None
    assert not is_idle_hook(idle, "on_after_backward")


@pytest.mark.parametrize(("arguments", "idle"), [({}, True), ({"freeze_at": 1}, False), ({"unfreeze_at": 1}, False)])
def test_our_freezing_is_idle_where_the_network_is_frozen_throughout(arguments, idle):
    callback = TeacherFreezing("student", **arguments)
    assert has_trait(callback, "idle_when_frozen") is idle
    assert is_idle_hook(callback, "on_train_batch_end") is idle


def unrecorded(folder, *callbacks, learner=None):
    learner = learner or twins()
    learner.configure_optimizers = lambda: torch.optim.SGD(learner.parameters(), lr=0.1)
    loop = FastLoop(cuda_graph=True)
    fit(folder, *callbacks, loop, learner=learner)
    return loop.unrecorded


class ChangesStep(Callback):
    changes_step = True


class ByNumber(Classifier):
    steps_are_alike = False


class ByNumberToo(nn.Module):
    """Not even a LightningModule."""

    steps_are_alike = False


@pytest.mark.parametrize("kind", [ChangesStep, ChangesTeacher])
def test_a_foreign_callback_that_changes_what_a_step_does_is_never_recorded(kind, tmp_path):
    assert unrecorded(tmp_path, kind()) == f"{kind.__name__} changes the training step"


def test_a_scheme_whose_steps_are_not_alike_is_never_recorded(tmp_path):
    reason = unrecorded(tmp_path, learner=ByNumber(toys.network()))
    assert reason == "the steps of ByNumber are not alike: its `steps_are_alike` is False"


@pytest.mark.parametrize(
    ("given", "expected"), [(ByNumberToo(), False), (nn.Linear(1, 1), True), (toys.classifier(), True)]
)
def test_steps_are_alike_unless_a_module_says_otherwise(given, expected):
    assert steps_are_alike(given) is expected
    assert SchemeTraits.steps_are_alike


NOT_ALIKE = {
    "GraftingDistiller",  # what learns depends on the batch's number
    "InversionDistiller",  # images are made at some batches, and drawn by the batch's number
    "PseudoExamplesDistiller",
}
CASES = found.cases()


@pytest.mark.parametrize("name", CASES)
def test_each_scheme_says_if_its_steps_are_alike(name):
    """Those of a graph with a linear gate, or of a random augmentation inside of the step, have tests of their own."""
    learner = CASES[name]().learner
    kind = type(learner).__name__
    expected = kind not in NOT_ALIKE
    if kind == "KDCL":
        expected = learner.augmentation is None
    if kind == "KnowledgeTransferGraph":
        expected = "LinearGate" not in {type(gate).__name__ for gate in learner.gates.values()}
    assert steps_are_alike(learner) is expected


def test_schedules_change_a_step_and_moving_teachers_a_teacher():
    assert has_trait(TermWeightSchedule("kd", Constant(1.0)), "changes_step")
    assert has_trait(EMATeacher(), "changes_teacher")
    assert has_trait(TeacherCache(), "needs_fixed_teacher")
    assert not any(has_trait(Callback(), trait) for trait in ("changes_teacher", "needs_fixed_teacher"))
    assert not any(has_trait(object(), trait) for trait in ("changes_step", "idle_when_frozen"))
