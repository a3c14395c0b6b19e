"""A distilled run leaves an ordinary checkpoint, resumes exactly and restores the user's module."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from kd_lightning import Term, UsageError
from kd_lightning.callbacks import Distillation, Linear, TemperatureSchedule
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss
from tests import toys
from tests.callbacks.drop_in import LR, Theirs, batches, distillation, fit

# the resumed runs write no checkpoints
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


# ---- the user's checkpoints


class Saves(Theirs):
    """A module that saves something of its own in a checkpoint."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["parameters"] = sum(parameter.numel() for parameter in self.backbone.parameters())


def test_the_users_class_loads_its_checkpoint_without_this_package(tmp_path):
    module, drop_in = Saves(width=8), distillation()
    before = weights_hash(drop_in.teacher)
    checkpoint = ModelCheckpoint(tmp_path)
    fit(module, drop_in, checkpoint, folder=tmp_path)
    assert weights_hash(drop_in.teacher) == before
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["state_dict"].keys() == Theirs().state_dict().keys()
    state = saved["callbacks"]["Distillation{'student': 'backbone'}"]
    assert state == {"teacher": before, "terms": state["terms"]}
    assert toys.same(state["terms"], dict(drop_in.terms.state_dict()))
    assert list(state["terms"]) == ["hint.loss.connector.weight", "hint.loss.connector.bias"]
    assert saved["hyper_parameters"] == {"width": 8}
    again = Saves.load_from_checkpoint(checkpoint.best_model_path, weights_only=True)
    assert toys.same(toys.weights(again), toys.weights(module))
    toys.trainer(tmp_path).validate(again, toys.Loader(batches()), verbose=False)


# ---- the user's module after a fit


def hooks(module: nn.Module) -> int:
    return sum(
        len(table)
        for part in module.modules()
        for name, table in vars(part).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs"))
    )


def plainly_fitted(module: LightningModule, folder: Any) -> LightningModule:
    fit(module, folder=folder)
    return module


def assert_as_it_was(module: LightningModule, like: LightningModule) -> None:
    assert vars(module).keys() == vars(like).keys()
    assert [name for name, _ in module.named_modules()] == [name for name, _ in like.named_modules()]
    assert module.state_dict().keys() == like.state_dict().keys()
    assert hooks(module) == hooks(like)
    assert module.hparams == like.hparams
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training_step.__func__ is type(module).training_step
    assert module.configure_optimizers.__func__ is type(module).configure_optimizers
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert toys.same(toys.weights(twin), toys.weights(module))
    torch.export.export(module.backbone.eval(), (batches()[0][0],))


def test_after_a_fit_the_users_module_is_restored(tmp_path):
    module, like = Theirs(), plainly_fitted(Theirs(), tmp_path)
    fit(module, distillation(), folder=tmp_path, val=toys.Loader(batches()))
    assert_as_it_was(module, like)


class Fails(Callback):
    def __init__(self, hook: str, error: type[BaseException]) -> None:
        self.error = error
        setattr(self, hook, self._fail)

    def _fail(self, *_: Any, **__: Any) -> None:
        raise self.error


class FailsInside(Theirs):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        raise RuntimeError("inside")


@pytest.mark.parametrize(
    ("hook", "error", "order"),
    [
        ("setup", ValueError, 1),
        ("setup", ValueError, -1),
        ("on_fit_start", ValueError, 1),
        ("on_before_backward", KeyboardInterrupt, 1),
        ("on_validation_start", ValueError, -1),
        ("on_train_end", KeyboardInterrupt, -1),
    ],
)
def test_after_a_failed_fit_the_users_module_is_restored_and_can_be_fitted(hook, error, order, tmp_path):
    module, drop_in, like = Theirs(), distillation(), plainly_fitted(Theirs(), tmp_path)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        fit(module, *[Fails(hook, error), drop_in][::order], folder=tmp_path, val=toys.Loader(batches()))
    fit(module, folder=tmp_path, max_epochs=0)  # so that Lightning's own attributes are the same
    assert_as_it_was(module, like)
    fit(module, drop_in, folder=tmp_path)
    assert_as_it_was(module, like)


def test_after_an_error_in_the_users_step_the_module_is_restored(tmp_path):
    module, like = FailsInside(), plainly_fitted(Theirs(), tmp_path)
    with pytest.raises(RuntimeError, match="inside"):
        fit(module, distillation(), folder=tmp_path)
    like.__class__ = FailsInside
    assert_as_it_was(module, like)


def test_a_method_set_on_the_instance_is_restored(tmp_path):
    module, calls = Theirs(), []

    def training_step(batch, batch_idx):
        calls.append(batch_idx)
        return Theirs.training_step(module, batch, batch_idx)

    module.training_step = training_step
    fit(module, distillation(), folder=tmp_path)
    assert vars(module)["training_step"] is training_step
    assert calls == [0, 1, 2, 3] * 2


def test_a_second_fit_continues_the_first(tmp_path):
    class Plain(Theirs):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    whole, pieces, drop_ins = Plain(), Plain(), (distillation(), distillation())
    fit(whole, drop_ins[0], folder=tmp_path, max_epochs=2)
    for _ in range(2):
        fit(pieces, drop_ins[1], folder=tmp_path, max_epochs=1)
    assert toys.same(toys.weights(whole), toys.weights(pieces))
    assert weights_hash(drop_ins[0].terms) == weights_hash(drop_ins[1].terms)


def test_evaluation_leaves_the_module_unchanged(tmp_path):
    module = Theirs()
    trainer = toys.trainer(tmp_path, distillation())
    trainer.validate(module, toys.Loader(batches()), verbose=False)
    assert [name for name, _ in module.named_children()] == ["backbone"]


# ---- a resume


class Random(LightningModule):
    """A user's module with dropout, BatchNorm and a learning-rate schedule over all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = toys.network(8, seed=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.backbone(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.1, total_steps=13), "interval": "step"}]


class RandomHint(nn.Module):
    """A connector with parameters, BatchNorm and dropout, which a resume must restore."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.connector = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


def randomly(seed: int = 2, hint_seed: int = 4) -> Distillation:
    terms = {"kd": Term(KDLoss(3.0)), "hint": Term(RandomHint(hint_seed), weight=2.0, student="4", teacher="4")}
    return Distillation("backbone", toys.network(16, seed), terms)


def run(folder: Any, drop_in: Distillation, *callbacks: Callback, ckpt_path: Any = None, **changes: Any):
    module = Random()
    schedule = TemperatureSchedule(Linear(8.0, 2.0, duration=12), term="kd")
    trainer = toys.trainer(folder, schedule, drop_in, *callbacks, **changes)
    trainer.fit(module, toys.data(val_size=16), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    ("changes", "average"),
    [
        ({}, False),
        ({"accumulate_grad_batches": 3, "gradient_clip_val": 0.1, "precision": "bf16-mixed"}, False),
        ({"accumulate_grad_batches": 2}, True),
    ],
)
def test_resume_from_every_step_is_bit_exact(changes, average, tmp_path):
    def again(*checkpoints, ckpt_path=None):
        # a connector with other weights, which the checkpoint replaces
        drop_in = randomly(hint_seed=5 if ckpt_path else 4)
        averages = [EMAWeightAveraging(decay=0.8)] if average else []
        module = run(tmp_path, drop_in, *averages, *checkpoints, ckpt_path=ckpt_path, **changes)
        # the average of a connector is not saved
        return toys.weights(module) | ({} if average else drop_in.state_dict()["terms"])

    every_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    every_epoch = ModelCheckpoint(tmp_path, "epoch-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    truth = again(every_step, every_epoch)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == {1: 12, 2: 6, 3: 6}[changes.get("accumulate_grad_batches", 1)] + 3
    for checkpoint in saved:
        if average and checkpoint.name in ("epoch-epoch=2.ckpt", "step=6.ckpt"):
            continue  # nothing is left to train, and Lightning does not copy the average into the module
        assert toys.same(again(ckpt_path=checkpoint), truth), checkpoint.name


class StopAt(Callback):
    def __init__(self, step: int, hook: str) -> None:
        self.step = step
        setattr(self, hook, self._stop)

    def _stop(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 3), ("on_train_batch_start", 4), ("on_train_batch_end", 5), ("on_validation_end", 8)],
)
def test_resume_after_an_interruption_is_bit_exact(hook, step, tmp_path):
    truth = run(tmp_path, randomly())
    save = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    with pytest.raises(SystemExit):
        run(tmp_path, randomly(), StopAt(step, hook), save)
    (saved,) = tmp_path.glob("*.ckpt")
    again = run(tmp_path, randomly(hint_seed=5), ckpt_path=saved)
    assert toys.same(toys.weights(again), toys.weights(truth))


def test_a_resume_with_another_teacher_raises(tmp_path):
    drop_in = randomly()
    run(tmp_path, drop_in, ModelCheckpoint(tmp_path), max_epochs=1)
    (saved,) = tmp_path.glob("*.ckpt")
    other = randomly(seed=3)
    ours, theirs = weights_hash(drop_in.teacher)[:12], weights_hash(other.teacher)[:12]
    with pytest.raises(UsageError, match=rf"another teacher of 'backbone' .*{ours}.*resumed with \({theirs}\)"):
        run(tmp_path, other, ckpt_path=saved)
    run(tmp_path, other, max_epochs=1)  # a fit does not depend on the one before
    run(tmp_path, randomly(), ckpt_path=saved, max_epochs=2)


def test_a_run_can_be_resumed_without_the_callback(tmp_path):
    run(
        tmp_path,
        Distillation("backbone", toys.network(16, 2), {"kd": Term(KDLoss())}),
        ModelCheckpoint(tmp_path),
        max_epochs=1,
    )
    (saved,) = tmp_path.glob("*.ckpt")
    module = Random()
    toys.trainer(tmp_path, max_epochs=2).fit(module, toys.data(val_size=16), ckpt_path=saved)
    assert torch.isfinite(module.backbone[2].weight).all()


def resume(begun_with: list[Callback], resumed_with: list[Callback], folder: Any) -> None:
    fit(Theirs(), *begun_with, ModelCheckpoint(folder, "begun"), folder=folder, max_epochs=1)
    trainer = toys.trainer(folder, *resumed_with, max_epochs=2)
    trainer.fit(Theirs(), toys.Loader(batches()), ckpt_path=folder / "begun.ckpt")
    assert trainer.global_step == 8


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_plain_run_is_resumed_with_distillation_that_has_no_parameters(tmp_path):
    resume([], [distillation(hint=False)], tmp_path)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize(
    ("begun_with", "resumed_with", "message"),
    [
        (None, True, r"a run without distillation of the student 'backbone', .* hint\.loss\.connector\.bias"),
        (False, True, r"a run with other terms of .* no state of the terms' hint\.loss\.connector\.bias"),
        (
            True,
            False,
            r"a run with other terms of .*, whose terms had hint\.loss\.connector\.bias.*: give Distillation",
        ),
    ],
)
def test_a_resume_with_other_parameters_of_terms_raises(begun_with, resumed_with, message, tmp_path):
    begun = [] if begun_with is None else [distillation(hint=begun_with)]
    with pytest.raises(UsageError, match=message):
        resume(begun, [distillation(hint=resumed_with)], tmp_path)
