from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import TeacherCache, TeacherFreezing
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import CAMKDLoss, EnsembleLoss, FeatureMSELoss, KDLoss
from kd_lightning.networks import Ensemble
from tests import toys

# a resumed run needs no callback that saves
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Counting(nn.Module):
    """A teacher that counts the rows it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.network = toys.network(16, seed=2)
        self.rows: list[int] = []

    def forward(self, images):
        self.rows.append(len(images))
        return self.network(images)


def learner(terms=None) -> OfflineDistiller:
    # Adam would make steps of the rounding noise in the gradient of a bias before BatchNorm
    return OfflineDistiller(
        toys.network(seed=1), Counting(), terms or toys.terms(), lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    )


def data(kind=MNISTDataModule, **changes):
    return kind(**{"batch_size": 16, "train_size": 64, "val_size": 0, "eval_batch_size": 24} | changes)


def fit(folder, module, *callbacks, datamodule=None, ckpt_path=None, **changes):
    toys.trainer(folder, *callbacks, **changes).fit(module, datamodule or data(), ckpt_path=ckpt_path)
    return toys.weights(module)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-12), ("bf16-mixed", 1e-3)])
def test_looked_up_logits_teach_as_the_live_teacher_does(precision, tolerance, tmp_path):
    live, cached = learner(), learner()
    truth = fit(tmp_path, live, precision=precision)
    weights = fit(tmp_path, cached, TeacherCache(), precision=precision)
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance)
    assert live.teacher.rows == [16] * 12
    assert cached.teacher.rows == [22, 21, 21, 16, 16, 16]  # every row once, and a batch an epoch to compare


def test_the_logits_of_an_ensemble_are_looked_up_each_by_itself(tmp_path):
    def learner():
        teacher = Ensemble([Counting(), toys.network(12, seed=3), toys.network(8, seed=4)])
        terms = {"kd": Term(EnsembleLoss(KDLoss(3.0))), "ca": Term(CAMKDLoss(3.0))}
        return OfflineDistiller(toys.network(seed=1), teacher, terms, lambda p: torch.optim.SGD(p, lr=0.1))

    live, cached = learner(), learner()
    truth, weights = fit(tmp_path, live), fit(tmp_path, cached, TeacherCache())
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    assert live.teacher.members[0].rows == [16] * 12
    assert cached.teacher.members[0].rows == [22, 21, 21, 16, 16, 16]


def test_what_its_layers_show_is_looked_up_too(tmp_path):
    """At indices that are a few of many, as those of a small training set are."""

    def terms():
        hint = Term(HintLike(), student="2", teacher=["network.0", "network.2"], weight=0.1)
        return {"kd": Term(KDLoss(3.0)), "hint": hint}

    live, cached = learner(terms()), learner(terms())
    truth, weights = fit(tmp_path, live), fit(tmp_path, cached, TeacherCache())
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    assert cached.teacher.rows == [22, 21, 21, 16, 16, 16]


class HintLike(nn.Module):
    """Compares a layer's mean with those of two layers of unlike shapes."""

    def forward(self, student, teacher, target=None):
        return sum((student.mean(dim=1) - shown.flatten(1).mean(dim=1)).square().mean() for shown in teacher)


def test_a_resumed_run_is_the_same_and_the_table_is_in_no_checkpoint(tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth = fit(tmp_path, learner(), TeacherCache(), save)
    for step in (3, 4, 6):
        saved = tmp_path / f"step={step}.ckpt"
        assert toys.same(fit(tmp_path, learner(), TeacherCache(), ckpt_path=saved), truth)
        assert not torch.load(saved, weights_only=True)["callbacks"].get("TeacherCache")


class Normalised(MNISTDataModule):
    """Prepares each batch where Lightning lets it."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return x - 0.5, *labels

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return 2 * x, *labels


def test_the_teacher_sees_rows_as_training_does(tmp_path):
    truth = fit(tmp_path, learner(), datamodule=data(Normalised))
    for name, value in fit(tmp_path, learner(), TeacherCache(), datamodule=data(Normalised)).items():
        torch.testing.assert_close(value, truth[name], rtol=0, atol=1e-6)


class Noisy(MNISTDataModule):
    """Hides its augmentation where no look at the loader finds it."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return x + 0.1 * torch.randn_like(x), *labels


class Shifted(MNISTDataModule):
    """Gives every row the index of the next."""

    def train_rows(self, rank=0, world_size=1):
        rows = [*super().train_rows(rank, world_size)]
        index = torch.cat([index for *_, index in rows]).roll(-1)
        return [(x, y, i) for (x, y, _), i in zip(rows, index.split([len(x) for x, *_ in rows]), strict=True)]


@pytest.mark.parametrize("kind", [Noisy, Shifted])
def test_logits_that_are_not_the_teachers_are_found_in_the_first_batch(kind, tmp_path):
    module = learner()
    before = toys.weights(module)
    with pytest.raises(RuntimeError, match=r"cached teacher logits are off by .* in epoch 0"):
        fit(tmp_path, module, TeacherCache(), datamodule=data(kind))
    assert toys.same(toys.weights(module), before)
    assert "watch_teacher" not in vars(module)


class LaterNoisy(Noisy):
    """Augments from the second epoch on."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return super().on_after_batch_transfer(batch, dataloader_idx) if self.trainer.current_epoch else batch


def test_each_epoch_is_looked_at(tmp_path):
    with pytest.raises(RuntimeError, match="in epoch 1"):
        fit(tmp_path, learner(), TeacherCache(), datamodule=data(LaterNoisy))


class WithoutIndex(MNISTDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[:2]


def on_parameters():
    weights = Term(FeatureMSELoss(), student="6.weight", teacher="network.6.weight", target=None)
    return {"kd": Term(KDLoss()), "weights": weights}


def of_the_batch():
    module = learner()
    norm = module.teacher.network[3]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return module


@pytest.mark.parametrize(
    ("module", "datamodule", "callbacks", "complaint"),
    [
        (learner, lambda: data(augmentation=toys.Noise()), [], "training inputs are random.*augmentation to null"),
        (lambda: learner(on_parameters()), data, [], "terms look at the teacher's network.6.weight"),
        (of_the_batch, data, [], "BatchNorm looks at the whole batch"),
        (toys.classifier, data, [], "Classifier has no watch_teacher"),
        (learner, lambda: toys.Loader([*data().train_dataloader()]), [], r"no train_rows\(\)"),
        (learner, lambda: data(WithoutIndex), [], "batches have target and no index"),
        (learner, data, [TeacherFreezing(unfreeze_at=1)], "the teacher is not frozen"),
    ],
)
def test_what_a_look_up_cannot_stand_in_for_is_refused(module, datamodule, callbacks, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module(), *callbacks, TeacherCache(), datamodule=datamodule())
    assert "\n" not in str(refusal.value)


class Stops(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        assert "watch_teacher" in vars(pl_module)
        raise RuntimeError("stop")


def test_the_teacher_is_back_in_its_place_when_the_fit_is_over(tmp_path):
    module = learner()
    fit(tmp_path, module, TeacherCache(), max_epochs=1)
    assert "watch_teacher" not in vars(module)
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, module, TeacherCache(), Stops(), max_epochs=1)
    assert "watch_teacher" not in vars(module)


class Halved(OfflineDistiller):
    def watch_teacher(self, batch):
        return {"logits": super().watch_teacher(batch)["logits"] / 2}


def test_a_schemes_own_way_to_watch_its_teacher_is_what_is_cached(tmp_path):
    def halved():
        return Halved(toys.network(seed=1), Counting(), toys.terms(), lambda p: torch.optim.SGD(p, lr=0.1))

    truth, weights = fit(tmp_path, halved()), fit(tmp_path, halved(), TeacherCache())
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
