"""A network is frozen for the whole fit, or starts or stops learning at an epoch."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, UsageError
from kd_lightning.callbacks import TeacherFreezing
from kd_lightning.core.hashing import weights_hash
from tests import toys

# a resumed run needs no callback that saves
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class TheirModule(LightningModule):
    """A user's module: a pretrained backbone with BatchNorm and dropout, and all parameters in the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = toys.network(seed=3)
        self.head = nn.Linear(10, 10)

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.head(self.backbone(batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def everything_that_learns(module):
    module.apply(lambda layer: layer.train())
    module.backbone.apply(lambda layer: layer.requires_grad_(True))


ATTACKS = {
    "train": lambda module: module.train(),
    "unfreeze": lambda module: module.unfreeze(),
    "requires_grad_": lambda module: module.backbone.requires_grad_(True),
    "apply": everything_that_learns,
}


class Attack(Callback):
    def __init__(self, name: str, *hooks: str) -> None:
        for hook in hooks:
            setattr(self, hook, lambda trainer, module, *_, **__: ATTACKS[name](module))


class Finetuning(BackboneFinetuning):
    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.backbone)


ATTACKERS = {name: lambda name=name: Attack(name, "setup", "on_train_batch_start") for name in ATTACKS} | {
    "validation hooks": lambda: Attack("apply", "on_validation_start", "on_validation_end"),
    "finetuning": lambda: Finetuning(unfreeze_backbone_at_epoch=1),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("attack", ATTACKERS)
def test_a_backbone_in_any_module_does_not_change(attack, precision, tmp_path):
    module = TheirModule()
    before, head = weights_hash(module.backbone), weights_hash(module.head)
    callbacks = [TeacherFreezing("backbone"), ATTACKERS[attack]()]
    trainer = toys.trainer(tmp_path, *callbacks, precision=precision, max_epochs=2)
    trainer.fit(module, toys.data(val_size=16))
    assert weights_hash(module.backbone) == before
    assert weights_hash(module.head) != head


def test_the_backbone_learns_again_after_the_fit(tmp_path):
    module = TheirModule()
    before = weights_hash(module.backbone)
    toys.trainer(tmp_path, TeacherFreezing("backbone"), max_epochs=1).fit(module, toys.data(val_size=16))
    assert weights_hash(module.backbone) == before
    toys.trainer(tmp_path, max_epochs=1).fit(module, toys.data(val_size=16))
    assert weights_hash(module.backbone) != before


def test_their_checkpoint_keeps_the_backbone(tmp_path):
    toys.trainer(tmp_path, TeacherFreezing("backbone.2"), ModelCheckpoint(tmp_path), max_epochs=1).fit(
        TheirModule(), toys.data(val_size=16)
    )
    (saved,) = tmp_path.glob("*.ckpt")
    TheirModule().load_state_dict(torch.load(saved, weights_only=True)["state_dict"], strict=True)


class Writes(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.teacher[3].running_mean += 1e-3


def test_a_teacher_that_was_changed_raises(tmp_path):
    with pytest.raises(UsageError, match="'teacher' is frozen and its weights have changed"):
        toys.trainer(tmp_path, TeacherFreezing(), Writes(), max_epochs=1).fit(toys.offline(), toys.data())


def other_teacher():
    return OfflineDistiller(toys.network(seed=1), toys.network(16, seed=5), toys.terms())


def test_a_resume_with_another_teacher_raises(tmp_path):
    toys.trainer(tmp_path, TeacherFreezing(), ModelCheckpoint(tmp_path), max_epochs=1).fit(toys.offline(), toys.data())
    (saved,) = tmp_path.glob("*.ckpt")
    toys.trainer(tmp_path, TeacherFreezing(), max_epochs=2).fit(toys.offline(), toys.data(), ckpt_path=saved)
    learner = other_teacher()
    ours, theirs = weights_hash(toys.offline().teacher)[:12], weights_hash(learner.teacher)[:12]
    with pytest.raises(UsageError, match=rf"{ours}.*resumed with \({theirs}\)"):
        toys.trainer(tmp_path, TeacherFreezing(), max_epochs=2).fit(learner, toys.data(), ckpt_path=saved)
    again = TeacherFreezing()  # a fit does not depend on the one before
    for learner in (toys.offline(), other_teacher()):
        toys.trainer(tmp_path, again, max_epochs=1).fit(learner, toys.data())


# ---- learning from an epoch on, or until one

DECAY = 0.1  # changes every parameter that the optimizer does not skip
CLIP = 0.05  # far below the norm of the gradients, so that the test fails if a dropped gradient is counted


def normalised(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    linear = nn.Linear(
        3 * 784, width, bias=False
    )  # with the normalisation, the gradient of a bias would be rounding noise
    return nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(width), nn.Linear(width, 10))


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=DECAY)


def by_hand(batches, teacher_learns) -> tuple[nn.Module, nn.Module]:
    """Three epochs in plain torch, in which the teacher learns or not."""
    student, teacher = normalised(8, seed=1).double(), normalised(16, seed=2).double()
    optimizer = adam([*student.parameters(), *teacher.parameters()])
    for learns in teacher_learns:
        teacher.train(learns)
        for x, y, _ in batches:
            logits, target = student(x.double()), teacher(x.double())
            soft = (target if learns else target.detach()).div(3).softmax(1)
            kl = (soft * (soft.log() - logits.div(3).log_softmax(1))).sum() / len(x)
            optimizer.zero_grad()
            (0.5 * functional.cross_entropy(logits, y) + 0.5 * 9 * kl).backward()
            learning = [*student.parameters(), *(teacher.parameters() if learns else [])]
            nn.utils.clip_grad_norm_(learning, CLIP)
            optimizer.step()
    return student, teacher


@pytest.mark.parametrize(
    ("epochs", "teacher_learns"),
    [
        ({"unfreeze_at": 1}, [False, True, True]),
        ({"freeze_at": 2}, [True, True, False]),
        ({"freeze_at": 1, "unfreeze_at": 2}, [True, False, True]),
    ],
)
def test_the_teacher_learns_in_its_epochs_only(epochs, teacher_learns, tmp_path):
    batches = list(toys.data(augmentation=None).train_dataloader())
    student, teacher = by_hand(batches, teacher_learns)
    learner = OfflineDistiller(normalised(8, seed=1), normalised(16, seed=2), toys.terms(), adam)
    trainer = toys.trainer(tmp_path, TeacherFreezing(**epochs), gradient_clip_val=CLIP, precision="64-true")
    trainer.fit(learner, toys.Loader(batches))
    assert learner.teacher[2].num_batches_tracked == len(batches) * sum(teacher_learns)
    for ours, theirs in ((learner.student, student), (learner.teacher, teacher)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-12)


class Teachers(Callback):
    """The teacher's hash at each epoch's end, and if the optimizer has state for it."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.optimized: list[bool] = []

    def on_train_epoch_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        self.digests.append(weights_hash(pl_module.teacher))
        self.optimized.append(any(bool(optimizer.state.get(p)) for p in pl_module.teacher.parameters()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_until_its_epoch_a_teacher_is_unchanged_and_has_no_optimizer_state(precision, tmp_path):
    learner, seen = toys.offline(), Teachers()
    before = weights_hash(learner.teacher)
    callbacks = [seen, Attack("train", "on_train_batch_start", "on_validation_end"), TeacherFreezing(unfreeze_at=2)]
    toys.trainer(tmp_path, *callbacks, precision=precision).fit(learner, toys.data(val_size=16))
    assert seen.digests[:2] == [before, before]
    assert seen.digests[2] != before
    assert seen.optimized == [False, False, True]


@pytest.mark.parametrize("epochs", [{"unfreeze_at": 1}, {"freeze_at": 1, "unfreeze_at": 2}])
def test_resume_from_every_step_is_bit_exact(epochs, tmp_path):
    whole = toys.offline()
    every_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    every_epoch = ModelCheckpoint(tmp_path, "epoch-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    toys.trainer(tmp_path, TeacherFreezing(**epochs), every_step, every_epoch).fit(whole, toys.data())
    truth = toys.weights(whole)
    assert any(name.startswith("teacher.") for name in truth)  # a teacher that learns is state
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 12 + 3
    for checkpoint in saved:
        again = other_teacher()  # its teacher comes from the checkpoint
        toys.trainer(tmp_path, TeacherFreezing(**epochs)).fit(again, toys.data(), ckpt_path=checkpoint)
        assert toys.same(toys.weights(again), truth), checkpoint.name


# ---- two processes

two_processes = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class WritesOnOneRank(Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.teacher[2].weight.data += trainer.global_rank


@two_processes
def test_ranks_with_different_teachers_raise(tmp_path):
    trainer = toys.trainer(tmp_path, WritesOnOneRank(), TeacherFreezing(), strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match="'teacher' is not the same network on all ranks"):
        trainer.fit(toys.offline(), toys.data())


@two_processes
def test_ranks_have_the_same_teacher_once_it_is_frozen_after_training(tmp_path):
    learner = toys.offline()
    before = weights_hash(learner.teacher)
    trainer = toys.trainer(tmp_path, TeacherFreezing(freeze_at=1), strategy="ddp_fork", devices=2, max_epochs=2)
    trainer.fit(learner, toys.data())
    assert weights_hash(learner.teacher) != before


# ---- errors, and modules that are not changed


def test_a_module_without_a_teacher_is_not_changed(tmp_path):
    trained = []
    for callbacks in ([TeacherFreezing()], []):
        learner = toys.classifier()
        before = toys.weights(learner)
        checkpoint = ModelCheckpoint(tmp_path / str(len(callbacks)))
        toys.trainer(tmp_path, *callbacks, checkpoint, max_epochs=1).fit(learner, toys.data())
        assert all(parameter.requires_grad for parameter in learner.parameters())
        assert not toys.same(toys.weights(learner), before)
        trained.append(toys.weights(learner))
    assert toys.same(*trained)


@pytest.mark.parametrize(
    ("callback", "complaint"),
    [
        (TeacherFreezing("techer"), "OfflineDistiller has no network 'techer'.*teacher"),
        (TeacherFreezing("teacher.9"), "no network 'teacher.9'"),
        (TeacherFreezing("teacher.2", unfreeze_at=1), "nothing in 'teacher.2' can learn"),
    ],
)
def test_a_network_that_is_missing_or_cannot_learn_raises(callback, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        toys.trainer(tmp_path, callback).fit(toys.offline(), toys.data())


def test_a_missing_teacher_that_is_to_learn_raises(tmp_path):
    with pytest.raises(ValueError, match="Classifier has no network 'teacher'"):
        toys.trainer(tmp_path, TeacherFreezing(unfreeze_at=1)).fit(toys.classifier(), toys.data())


@pytest.mark.parametrize("epochs", [{"freeze_at": -1}, {"unfreeze_at": 0}, {"freeze_at": 3, "unfreeze_at": 3}])
def test_epochs_that_are_not_in_order_raise(epochs):
    with pytest.raises(ValueError, match="frozen before it is unfrozen"):
        TeacherFreezing(**epochs)


def test_a_failed_fit_unfreezes_the_network(tmp_path):
    module = TheirModule()
    with pytest.raises(RuntimeError, match="stop"):
        toys.trainer(tmp_path, TeacherFreezing("backbone"), Stops()).fit(module, toys.data(val_size=16))
    assert all(parameter.requires_grad for parameter in module.backbone.parameters())
    assert copy.deepcopy(module.backbone).train().training


class Stops(Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("stop")
