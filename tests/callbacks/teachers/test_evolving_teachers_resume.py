"""Evolving teachers after a resume, in other modules, and in checkpoints."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.callbacks import (
    BornAgain,
    EMATeacher,
    SnapshotTeacher,
)
from kd_lightning.callbacks.distillation import Distillation
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss
from kd_lightning.networks import load_student, load_teacher
from tests import toys
from tests.callbacks.teachers.twins import CASES, born_again, every_case, half_each, run, sgd, twins

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

# ---- resume: `tests/test_every_scheme.py` resumes each case from each checkpoint


class Stops(Callback):
    """Ctrl-C, before the other callbacks hear of it."""

    def __init__(self, hook: str, batch: int) -> None:
        self.batch = batch
        setattr(self, hook, self._stop)

    def _stop(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise KeyboardInterrupt


@every_case
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("batches", [(1, 2), (3, 4)])
def test_resume_after_two_interruptions_is_bit_exact(name, hook, batches, tmp_path):
    truth, _ = run(CASES[name](), tmp_path)
    saved = None
    for batch in batches:
        save = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0, save_last=True)
        with pytest.raises(SystemExit):  # which is what Lightning makes of it
            run(CASES[name](), tmp_path, Stops(hook, batch), save, ckpt_path=saved)
        saved = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    again, _ = run(CASES[name](), tmp_path, ckpt_path=saved)
    assert toys.same(toys.weights(again), toys.weights(truth))


@every_case
def test_resume_with_accumulation_and_bf16_is_bit_exact(name, tmp_path):
    changes = {"accumulate_grad_batches": 3, "precision": "bf16-mixed", "gradient_clip_val": 0.1}
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth, _ = run(CASES[name](), tmp_path, save, **changes)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 6
    for checkpoint in saved:
        again, _ = run(CASES[name](), tmp_path, ckpt_path=checkpoint, **changes)
        assert toys.same(toys.weights(again), toys.weights(truth)), checkpoint.name


def test_a_resumed_run_goes_on_with_its_seed(tmp_path):
    truth, _ = run(born_again(), tmp_path, ModelCheckpoint(tmp_path, "first", every_n_train_steps=3, save_top_k=1))
    other = born_again()._replace(callbacks=[BornAgain(1, seed=6)])
    again, _ = run(other, tmp_path, ckpt_path=tmp_path / "first.ckpt")
    assert toys.same(toys.weights(again), toys.weights(truth))


class Theirs(LightningModule):
    """Someone's own module, which knows nothing of a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = toys.network(seed=1)

    def training_step(self, batch, batch_idx):
        return 0.5 * functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return sgd(self.parameters())


class TheirsWithTeacher(Theirs):
    """Their teacher is a submodule like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = toys.network(seed=2)

    def training_step(self, batch, batch_idx):
        return half_each(0, self.backbone(batch[0]), self.teacher(batch[0]), batch[1])


def test_a_teacher_in_anyones_module_does_not_learn(tmp_path):
    module = TheirsWithTeacher()
    toys.trainer(tmp_path, SnapshotTeacher(9, student="backbone")).fit(module, toys.data())
    assert toys.same(module.teacher.state_dict(), toys.network(seed=1).state_dict())
    assert not toys.same(module.teacher.state_dict(), module.backbone.state_dict())


def drop_in(kind, folder, *callbacks, ckpt_path=None, **changes) -> tuple[Theirs, nn.Module]:
    # what the teacher begins with does not matter at a resume
    module, teacher = Theirs(), toys.network(seed=2 if ckpt_path is None else 7)
    distillation = Distillation("backbone", teacher, {"kd": Term(KDLoss(temperature=3.0), weight=0.5)})
    moving = kind(student="backbone")
    toys.trainer(folder, moving, distillation, *callbacks, **changes).fit(module, toys.data(), ckpt_path=ckpt_path)
    return module, teacher


KINDS = [
    EMATeacher,
    lambda **names: SnapshotTeacher(3, "step", **names),
    lambda **names: BornAgain(1, seed=5, **names),
]


@pytest.mark.parametrize("kind", KINDS, ids=["momentum", "snapshot", "born_again"])
def test_the_teacher_of_a_drop_in_moves_and_resumes(kind, tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    module, teacher = drop_in(kind, tmp_path, save)
    assert not toys.same(teacher.state_dict(), toys.network(seed=2).state_dict())
    assert not any("teacher" in key for key in module.state_dict())
    for checkpoint in sorted(tmp_path.glob("*.ckpt")):
        again, moved = drop_in(kind, tmp_path, ckpt_path=checkpoint)
        assert toys.same(toys.weights(again), toys.weights(module)), checkpoint.name
        assert toys.same(moved.state_dict(), teacher.state_dict()), checkpoint.name


class SameTeacher(Callback):
    """On both ranks, in every step, its BatchNorm's buffers too."""

    def on_before_backward(self, trainer, pl_module, loss):
        (distillation,) = (callback for callback in trainer.callbacks if isinstance(callback, Distillation))
        own = torch.tensor(list(bytes.fromhex(weights_hash(distillation.teacher))))
        assert (all_gather_with_grad(own).view(2, -1) == own).all()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=["momentum", "snapshot", "born_again"])
def test_two_processes_have_one_teacher_where_it_is_no_part_of_the_module(kind, tmp_path):
    drop_in(kind, tmp_path, SameTeacher(), strategy="ddp_fork", devices=2)


# ---- files


@every_case
def test_student_and_teacher_are_both_in_a_checkpoint_and_can_be_told_apart(name, tmp_path):
    learner, _ = run(CASES[name](), tmp_path, ModelCheckpoint(tmp_path, "last"))
    file = tmp_path / "last.ckpt"
    assert {key.split(".")[0] for key in torch.load(file, weights_only=True)["state_dict"]} >= {"student", "teacher"}
    assert toys.same(load_student(file, toys.network()).state_dict(), learner.student.state_dict())
    teacher = load_teacher(toys.network(), file, prefix="teacher")
    assert toys.same(teacher.state_dict(), learner.teacher.state_dict())
    assert not toys.same(teacher.state_dict(), learner.student.state_dict())

    fresh = twins()  # no callback has set it up, and its teacher is one that is left out
    weights = torch.load(file, weights_only=True)["state_dict"]
    fresh.load_state_dict({key: value for key, value in weights.items() if "hint" not in key}, strict=True)
    assert toys.same(fresh.teacher.state_dict(), learner.teacher.state_dict())


def test_the_ensemble_of_all_generations(tmp_path):
    """The mean of what the generations say, from the files that the docstring of `BornAgain` speaks of."""
    each = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    _, kept = run(born_again(), tmp_path, each)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    images = torch.rand(4, 3, 28, 28)
    mean = torch.stack([load_student(file, toys.network())(images) for file in files]).mean(dim=0)

    total = torch.zeros(4, 10)
    for n in (3, 7, 11):  # the last batch of each generation
        network = toys.network().eval()
        network.load_state_dict({k[8:]: v for k, v in kept.after[n].items() if k.startswith("student.")})
        total += network(images).detach()
    torch.testing.assert_close(mean.detach(), total / 3)
