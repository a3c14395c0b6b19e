"""Rows and outputs that differ from those of the teacher pass are found."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning import OfflineDistiller, Term, UsageError
from kd_lightning.callbacks import TeacherCache
from kd_lightning.core.fingerprints import row_fingerprints
from kd_lightning.data import MNISTDataModule
from tests import toys
from tests.speed.teacher_cache.runs import Normalised, augmented, data, fit, learner

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

# ---- what differs from the cached teacher, or not what it says


class Noisy(MNISTDataModule):
    """Hides its augmentation where no look at the loader finds it, from a batch on."""

    begins = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        if not self.trainer.fit_loop.epoch_loop.batch_progress.total.ready >= self.begins:
            return batch
        x = x.clone()
        x[-1] += 0.001 * torch.randn_like(x[-1])  # of a single row
        return x, *labels


class Shifted(MNISTDataModule):
    """Gives every row the index of the next."""

    def train_rows(self, rank=0, world_size=1, batch_size=None):
        rows = [*super().train_rows(rank, world_size, batch_size)]
        index = torch.cat([index for *_, index in rows]).roll(-1)
        return [(x, y, i) for (x, y, _), i in zip(rows, index.split([len(x) for x, *_ in rows]), strict=True)]


class Missing(MNISTDataModule):
    """Leaves the last rows out, whose indices are the largest."""

    def train_rows(self, rank=0, world_size=1, batch_size=None):
        return [*super().train_rows(rank, world_size, batch_size)][:1]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Noisy, r"training row \d+ .*in epoch 0 differs from the cached teacher"),
        (Shifted, r"training row \d+ \(and 15 more of its batch\) in epoch 0 differs from the cached teacher"),
        (Missing, r"training row \d+ in epoch 0 is missing from train_rows\(\)"),
    ],
)
def test_rows_that_differ_from_the_pass_are_found_in_the_first_batch(kind, complaint, tmp_path):
    module = learner()
    before = toys.weights(module)
    with pytest.raises(UsageError, match=complaint) as found:
        fit(tmp_path, module, TeacherCache(), datamodule=data(kind))
    assert "\n" not in str(found.value)
    assert toys.same(toys.weights(module), before)
    assert module.teacher_source is None


class OneMissing(MNISTDataModule):
    """Leaves a row out."""

    def train_rows(self, rank=0, world_size=1, batch_size=None):
        for x, y, index in super().train_rows(rank, world_size, batch_size):
            there = index != self.missing
            yield x[there], y[there], index[there]


def test_a_row_that_is_not_there_is_found_in_its_batch(tmp_path):
    datamodule, kept = data(OneMissing), Parameters()
    datamodule.missing = [*data().train_dataloader()][2][2][5]
    complaint = rf"training row {datamodule.missing} in epoch 0 is missing from train_rows\(\)"
    with pytest.raises(UsageError, match=complaint):
        fit(tmp_path, learner(), TeacherCache(), kept, datamodule=datamodule)
    assert len(kept.after) == 2


class Parameters(Callback):
    """Keeps what the student's parameters were after each step."""

    def __init__(self) -> None:
        self.after: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append([parameter.detach().clone() for parameter in pl_module.student.parameters()])


@pytest.mark.parametrize("begins", [1, 2, 3, 4, 6, 11])
def test_an_augmentation_is_found_at_the_batch_where_it_begins_and_before_its_step(begins, tmp_path):
    datamodule, module, kept = data(Noisy), learner(), Parameters()
    datamodule.begins = begins
    with pytest.raises(UsageError, match=rf"training row \d+ in epoch {begins // 4} differs from the cached teacher"):
        fit(tmp_path, module, TeacherCache(), kept, datamodule=datamodule)
    assert len(kept.after) == begins
    assert all(map(torch.equal, module.student.parameters(), kept.after[-1]))


class InPlace(MNISTDataModule):
    """Writes its augmentation into what the loader gave."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready >= 2:
            batch[0][-1] += 0.001
        return batch


class OtherRows(MNISTDataModule):
    """Writes into the indices."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready >= 2:
            batch[2].copy_(batch[2].flip(0))
        return batch


class StopsNormalising(Normalised):
    """Shows from a batch on what the loader gave."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        ready = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return super().on_after_batch_transfer(batch, dataloader_idx) if ready < 2 else batch


@pytest.mark.parametrize(("kind", "changes"), [(InPlace, {"num_channels": 1}), (OtherRows, {}), (StopsNormalising, {})])
def test_what_is_written_into_a_batch_is_found_there(kind, changes, tmp_path):
    def network(width, seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(784 * changes.get("num_channels", 3), width), nn.Linear(width, 10))

    kept = Parameters()
    module = OfflineDistiller(network(8, 1), network(16, 2), toys.terms())
    with pytest.raises(UsageError, match=r"training row \d+ .*in epoch 0 differs from the cached teacher"):
        fit(tmp_path, module, TeacherCache(), kept, datamodule=data(kind, **changes))
    assert len(kept.after) == 2


@pytest.mark.parametrize(
    ("datamodule", "compared"),
    [
        (data, [0, 4, 8]),  # what the loader marks as immutable is compared at the first batch of each epoch
        (lambda: data(num_channels=1), range(12)),
        (lambda: data(Normalised), range(12)),
        (lambda: data(Noisy), [0]),
        (lambda: augmented(), range(12)),
    ],
)
def test_what_no_loader_marks_as_immutable_is_compared_at_each_batch(datamodule, compared, tmp_path, monkeypatch):
    module, steps = learner(), []
    if datamodule().num_channels == 1:
        module = OfflineDistiller(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.Flatten(), {"kd": Term(Mean())})

    def count(inputs):
        steps.append(module.trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        return row_fingerprints(inputs)

    monkeypatch.setattr("kd_lightning.speed.teacher_cache.callback.row_fingerprints", count)
    with contextlib.suppress(UsageError):
        fit(tmp_path, module, TeacherCache(), datamodule=datamodule())
    assert sorted(set(steps)) == list(compared)


class Mean(nn.Module):
    def forward(self, student, teacher, target=None):
        return (student.mean(dim=1) - teacher.mean(dim=1)).square().mean()


class ShiftsTheTable(Callback):
    """Moves every row of the answers to the next place, once they are there."""

    def on_train_start(self, trainer, pl_module):
        (cache,) = (callback for callback in trainer.callbacks if isinstance(callback, TeacherCache))
        cache._table.outputs = {layer: table.roll(1, 0) for layer, table in cache._table.outputs.items()}


@pytest.mark.parametrize("seed", range(20))
def test_answers_shifted_by_a_row_are_found_before_the_first_step(seed, tmp_path):
    module = OfflineDistiller(toys.network(seed=seed), toys.network(16, seed=seed + 100), toys.terms())
    before = toys.weights(module)
    with pytest.raises(UsageError, match=r"cached teacher logits are off by .* in epoch 0: rows are shifted"):
        fit(tmp_path, module, TeacherCache(), ShiftsTheTable(), datamodule=data(seed=seed))
    assert toys.same(toys.weights(module), before)


class Falsifies(Callback):
    """Makes the answers others, in an epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        ShiftsTheTable().on_train_start(trainer, pl_module)


def test_the_answers_of_each_epoch_are_compared_with_the_teachers(tmp_path):
    kept = Parameters()
    with pytest.raises(UsageError, match=r"cached teacher logits are off by .* in epoch 1"):
        fit(tmp_path, learner(), TeacherCache(), Falsifies(), kept)
    assert len(kept.after) == 4


# ---- where no step is to wait for the device


class AsOnAGPU(Callback):
    """Has a row that changed kept until somebody looks, as on devices that would have to be waited for."""

    def on_train_start(self, trainer, pl_module):
        (cache,) = (callback for callback in trainer.callbacks if isinstance(callback, TeacherCache))
        table = cache._table
        table.defers_checks = True
        table.position_of[table.position_of == table.missing] = table.sentinel


@pytest.mark.parametrize(("log_every", "steps"), [(1, 2), (3, 2), (100, 4)])
def test_without_waiting_a_change_is_reported_when_something_else_waits(log_every, steps, tmp_path):
    """At the next step that is logged, or at the end of the epoch."""
    datamodule, kept = data(Noisy), Parameters()
    datamodule.begins = 1
    with pytest.raises(UsageError, match=r"training row \d+ differs from the cached teacher"):
        fit(tmp_path, learner(), TeacherCache(), AsOnAGPU(), kept, datamodule=datamodule, log_every_n_steps=log_every)
    assert len(kept.after) == steps


def test_without_waiting_nothing_is_saved_that_learned_from_a_change(tmp_path):
    datamodule = data(Noisy)
    datamodule.begins = 1
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(UsageError, match="differs from the cached teacher"):
        fit(tmp_path, learner(), TeacherCache(), AsOnAGPU(), save, datamodule=datamodule, log_every_n_steps=100)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=1.ckpt"]


@pytest.mark.parametrize("views", [None, 2])
def test_without_waiting_the_look_up_is_the_same(views, tmp_path):
    def datamodule():
        return augmented(num_augmented_views=views) if views else data()

    truth = fit(tmp_path, learner(), TeacherCache(), datamodule=datamodule())
    assert toys.same(fit(tmp_path, learner(), TeacherCache(), AsOnAGPU(), datamodule=datamodule()), truth)


def test_without_waiting_a_row_that_is_not_there_is_found_too(tmp_path):
    with pytest.raises(UsageError, match=r"cached teacher logits are off by nan"):
        fit(tmp_path, learner(), TeacherCache(), AsOnAGPU(), datamodule=data(Missing))
