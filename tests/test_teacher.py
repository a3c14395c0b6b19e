"""A teacher that does not learn: never optimised, never saved, never changed."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kd_lightning import load_student
from kd_lightning.callbacks import TeacherFreezing
from kd_lightning.core.hashing import weights_hash
from kd_lightning.weights.export import export_checkpoint
from tests import toys


class Attack(Callback):
    """Calls what switches a teacher on in other people's code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def strike(self, learner) -> None:
        match self.name:
            case "train":
                learner.train()
                learner.teacher.train()
                learner.teacher[3].train()
            case "unfreeze":
                learner.unfreeze()
            case "requires_grad_":
                learner.teacher.requires_grad_(True)
            case "apply":
                learner.apply(lambda module: module.train())
                learner.teacher.apply(lambda module: module.requires_grad_(True))
            case "children":
                for module in learner.modules():
                    module.training = True

    def setup(self, trainer, pl_module, stage):
        self.strike(pl_module)

    def on_validation_end(self, trainer, pl_module):  # as Lightning before 2.2 did itself
        self.strike(pl_module)

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.strike(pl_module)


class Finetuning(BackboneFinetuning):
    """Lightning's own callback, aimed at the teacher."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.backbone = pl_module.teacher
        super().on_fit_start(trainer, pl_module)

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.teacher)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.teacher)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("attack", ["train", "unfreeze", "requires_grad_", "apply", "children", "finetuning"])
def test_the_teacher_does_not_change(attack, precision, tmp_path):
    learner = toys.offline()
    before = weights_hash(learner.teacher)
    student = toys.weights(learner)
    attacker = Finetuning(unfreeze_backbone_at_epoch=1) if attack == "finetuning" else Attack(attack)
    run = toys.trainer(tmp_path, attacker, TeacherFreezing(), precision=precision, max_epochs=2)
    run.fit(learner, toys.data(val_size=100))
    assert weights_hash(learner.teacher) == before
    assert not toys.same(toys.weights(learner), student)
    taught = {id(parameter) for parameter in learner.teacher.parameters()}
    assert not any(id(p) in taught for group in run.optimizers[0].param_groups for p in group["params"])


def test_no_kind_of_checkpoint_holds_a_teacher(tmp_path):
    learner = toys.offline()
    callbacks = [
        ModelCheckpoint(tmp_path / "full"),
        ModelCheckpoint(tmp_path / "weights", save_weights_only=True, every_n_train_steps=2),
        WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    ]
    toys.trainer(tmp_path, *callbacks, max_epochs=1).fit(learner, toys.data())
    sizes = {tuple(value.shape) for value in learner.teacher.state_dict().values() if value.dim()}
    own = {tuple(value.shape) for value in learner.student.state_dict().values()}
    assert sizes - own  # the teacher is wider: its shapes tell

    for path in tmp_path.rglob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        assert not [name for name in content["state_dict"] if "teacher" in name]
        assert not _shapes(content) & (sizes - own), path
        fresh = toys.offline()
        fresh.load_state_dict(content["state_dict"], strict=True)
    export_checkpoint(str(tmp_path / "full" / "epoch=0-step=4.ckpt"), str(tmp_path / "student.safetensors"))
    loaded = load_student(tmp_path / "student.safetensors", toys.network())
    assert toys.same(
        loaded.state_dict(), load_student(tmp_path / "full/epoch=0-step=4.ckpt", toys.network()).state_dict()
    )


def _shapes(content) -> set[tuple[int, ...]]:
    if isinstance(content, torch.Tensor):
        return {tuple(content.shape)}
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else []
    return set().union(*(_shapes(value) for value in values))


def test_a_misspelled_checkpoint_is_refused_though_the_teacher_is_missing():
    state = toys.offline().state_dict()
    wrong = {name.replace("student.", "studnet."): value for name, value in state.items()}
    with pytest.raises(RuntimeError, match="which they lack, and they have studnet"):
        toys.offline().load_state_dict(wrong, strict=True)
