"""A fit with cached teacher outputs is the fit with the live teacher."""

import sys

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import TeacherCache
from kd_lightning.core.activations import tap
from kd_lightning.losses import CAMKDLoss, EnsembleLoss, KDLoss
from kd_lightning.networks import Ensemble
from tests import toys
from tests.speed.teacher_cache.runs import Counting, HintLike, Normalised, augmented, data, fit, learner

# a resumed run needs no callback that saves
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


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


def test_a_resumed_run_is_the_same_and_the_table_is_in_no_checkpoint(tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth = fit(tmp_path, learner(), TeacherCache(), save)
    for step in (3, 4, 6):
        saved = tmp_path / f"step={step}.ckpt"
        assert toys.same(fit(tmp_path, learner(), TeacherCache(), ckpt_path=saved), truth)
        assert not torch.load(saved, weights_only=True)["callbacks"].get("TeacherCache")


def test_the_teacher_sees_rows_as_training_does(tmp_path):
    truth = fit(tmp_path, learner(), datamodule=data(Normalised))
    for name, value in fit(tmp_path, learner(), TeacherCache(), datamodule=data(Normalised)).items():
        torch.testing.assert_close(value, truth[name], rtol=0, atol=1e-6)


# ---- under an augmentation


@pytest.mark.parametrize(
    "changes",
    [
        {"num_augmented_views": 1},
        {"num_augmented_views": 2},
        {"num_augmented_views": 3, "steps_per_epoch": 6},
        {"num_augmented_views": 5},
    ],
    ids=str,
)
def test_each_view_is_looked_up_by_itself(changes, tmp_path):
    live, cached = learner(), learner()
    truth = fit(tmp_path, live, datamodule=augmented(**changes))
    weights = fit(tmp_path, cached, TeacherCache(), datamodule=augmented(**changes))
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    assert cached.teacher.rows == [22, 21, 21] * changes["num_augmented_views"] + [16, 16, 16]


@pytest.mark.parametrize("changes", [{}, {"max_epochs": -1, "max_steps": 12}, {"limit_train_batches": 3}], ids=str)
def test_a_resumed_run_looks_its_views_up(changes, tmp_path):
    """In the middle of an epoch and between two; the loader's epochs are not Lightning's under a limit."""
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    truth = fit(tmp_path, learner(), TeacherCache(), save, datamodule=augmented(num_augmented_views=3), **changes)
    for saved in tmp_path.glob("*.ckpt"):
        resumed = fit(
            tmp_path, learner(), TeacherCache(), datamodule=augmented(num_augmented_views=3), ckpt_path=saved, **changes
        )
        assert toys.same(resumed, truth), saved.name


# ---- evaluation


class WatchesInEvaluation(OfflineDistiller):
    """Asks its teacher about validation images, whose indices are those of training images as well."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        batch = self.split_batch(batch)
        batch.labels["index"] = self.trainer.datamodule.split[0][: len(batch.labels["index"])]
        expected = tap(self.teacher, batch.teacher)["logits"]
        assert torch.equal(self.teacher_activations(batch)["logits"], expected)


def test_in_evaluation_the_teacher_shows_itself(tmp_path):
    module = WatchesInEvaluation(toys.network(seed=1), Counting(), toys.terms())
    fit(tmp_path, module, TeacherCache(), datamodule=data(val_size=20), max_epochs=1)
    assert module.teacher.rows[:2] == [20, 20]  # before training
    assert module.teacher.rows[-2:] == [20, 20]


# ---- the precision of the pass


class HalvedPrecision(OfflineDistiller):
    """Its teacher computes in bfloat16, by itself."""

    def run_teacher(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return {layer: values.float() for layer, values in super().run_teacher(batch).items()}


def test_a_teacher_in_bfloat16_teaches_as_a_live_one_in_bfloat16(tmp_path):
    def learner(kind):
        return kind(toys.network(seed=1), Counting(), toys.terms(), lambda p: torch.optim.SGD(p, lr=0.1))

    live, full = learner(HalvedPrecision), learner(OfflineDistiller)
    truth = fit(tmp_path, live)
    weights = fit(tmp_path, full, TeacherCache(precision="bf16"))
    other = fit(tmp_path, learner(OfflineDistiller))
    assert full.teacher.rows == [22, 21, 21, 16, 16, 16]
    apart = max((other[name] - value).abs().max() for name, value in truth.items())
    assert apart > 1e-5
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0.1 * apart.item())


# ---- what it costs


def test_a_step_makes_few_calls(tmp_path):
    """Look-up and comparison; under an augmentation, too."""
    for datamodule, most in ((data(), 10), (augmented(), 15)):
        counts = Counts()
        fit(tmp_path, learner(), TeacherCache(), counts, datamodule=datamodule, max_epochs=2)
        assert 0 < counts.calls <= most


class Counts(Callback):
    """Counts the Python calls that a look-up makes, and the callback's hook around it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx != 2:
            return
        (cache,) = (callback for callback in trainer.callbacks if isinstance(callback, TeacherCache))
        split, self.calls = pl_module.split_batch(batch), 0
        sys.setprofile(self.count)
        cache.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        pl_module.teacher_activations(split)
        sys.setprofile(None)

    def count(self, frame, event, arg):
        self.calls += event == "call"
