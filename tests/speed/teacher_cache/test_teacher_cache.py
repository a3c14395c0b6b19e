from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from kd_lightning import OfflineDistiller, Term, UsageError
from kd_lightning.callbacks import TeacherCache, TeacherFreezing
from kd_lightning.core.activations import tap
from kd_lightning.core.fingerprints import row_fingerprints
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


# ---- under an augmentation


def augmented(**changes):
    return data(augmentation=toys.Noise(), **{"num_augmented_views": 2} | changes)


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


# ---- files


def kept(folder, module=None, datamodule=None, **changes):
    """A run with a folder: its weights, the rows that its teacher was asked about, and the files there."""
    module = module or learner()
    cache = {"memory_limit_mib": changes.pop("memory_limit_mib", 1024), "precision": changes.pop("halves", "trainer")}
    weights = fit(folder, module, TeacherCache(folder / "cache", **cache), datamodule=datamodule, **changes)
    return weights, module.teacher.rows, sorted((folder / "cache").iterdir())


@pytest.mark.parametrize("limit", [1024, 1e-4])
@pytest.mark.parametrize("views", [None, 2])
def test_a_later_run_asks_the_teacher_nothing_again(views, limit, tmp_path):
    def datamodule():
        return augmented(num_augmented_views=views) if views else data()

    truth = fit(tmp_path, learner(), TeacherCache(), datamodule=datamodule())
    weights, rows, files = kept(tmp_path, datamodule=datamodule(), memory_limit_mib=limit)
    assert toys.same(weights, truth)
    assert rows == [22, 21, 21] * (views or 1) + [16] * 3
    for _ in range(2):
        weights, rows, again = kept(tmp_path, datamodule=datamodule(), memory_limit_mib=limit)
        assert toys.same(weights, truth)
        assert rows == [16] * 3
        assert again == files
    assert len(files) == 1
    numbers = 64 * (views or 1)  # of answers and fingerprints, and of answers one more, that are of no row
    assert numbers * 48 + 40 + 64 * 8 <= files[0].stat().st_size <= numbers * 48 + 40 + 64 * 8 + 600


class Maps(Callback):
    """Says whether a file is mapped in training."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.mapped = f"{trainer.default_root_dir}/cache/teacher-" in Path("/proc/self/maps").read_text()


def test_above_the_limit_a_file_is_mapped_and_without_a_folder_refused(tmp_path):
    maps = Maps()
    for limit, mapped in ((0.0025, False), (0.0024, True)):  # 65 x 40 bytes
        for _ in range(2):
            fit(tmp_path, learner(), TeacherCache(tmp_path / "cache", memory_limit_mib=limit), maps, max_epochs=1)
            assert maps.mapped == mapped
    complaint = r"at logits take 0\.00248 MiB, more than memory_limit_mib=0\.0024: give TeacherCache a cache_dir to"
    module = learner()
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module, TeacherCache(memory_limit_mib=0.0024))
    assert "\n" not in str(refusal.value)
    assert module.teacher.rows == [22]  # found before the pass


def hinted():
    terms = {"kd": Term(KDLoss(3.0)), "hint": Term(HintLike(), student="2", teacher=["network.2"], weight=0.1)}
    return learner(terms)


def other_weights():
    module = learner()
    with torch.no_grad():
        module.teacher.network[2].bias[3] += 1e-3
    return module


def other_pool():
    """The same weights, in a network that is another."""
    module = learner()
    module.teacher.network[0] = nn.MaxPool2d(4)
    return module


@pytest.mark.parametrize(
    "changes",
    [
        {"module": other_weights},
        {"module": other_pool},
        {"module": hinted},
        {"module": lambda: Halved(toys.network(seed=1), Counting(), toys.terms())},
        {"datamodule": lambda: data(train_size=80)},
        {"datamodule": lambda: data(seed=1)},
        {"datamodule": lambda: data(Normalised)},
        {"datamodule": lambda: augmented(num_augmented_views=1)},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"halves": "bf16"},
    ],
    ids=lambda changes: str(next(iter(changes))),
)
def test_a_stale_file_is_never_used(changes, tmp_path):
    """Whatever is another has a file of its own, and the first stays good."""
    _, _, before = kept(tmp_path)
    build = {name: value if isinstance(value, str) else value() for name, value in changes.items()}
    _, rows, files = kept(tmp_path, **build)
    assert len(rows) > 3
    assert len(files) == 2
    assert kept(tmp_path)[1:] == ([16] * 3, files)
    assert set(before) < set(files)


@pytest.mark.parametrize(
    "shuffled", [{"batch_size": 8}, {"drop_last": False, "batch_size": 20}, {"steps_per_epoch": 9}]
)
def test_how_rows_are_shuffled_and_put_into_batches_is_no_matter_of_the_file(shuffled, tmp_path):
    _, _, before = kept(tmp_path)
    truth = fit(tmp_path, learner(), TeacherCache(), datamodule=data(**shuffled, eval_batch_size=24))
    weights, rows, files = kept(tmp_path, datamodule=data(**shuffled, eval_batch_size=11))
    assert toys.same(weights, truth)
    assert rows == [shuffled.get("batch_size", 16)] * 3
    assert files == before


class Backwards(MNISTDataModule):
    def train_rows(self, rank=0, world_size=1, batch_size=None):
        return [*super().train_rows(rank, world_size, batch_size)][::-1]


def test_nor_is_the_order_in_which_they_are_walked_over(tmp_path):
    truth, _, before = kept(tmp_path)
    weights, rows, files = kept(tmp_path, datamodule=data(Backwards))
    assert toys.same(weights, truth)
    assert rows == [16] * 3
    assert files == before


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"\xff", lambda content: content[:1000]])
def test_a_damaged_file_is_written_anew(damage, tmp_path):
    truth, _, (file,) = kept(tmp_path)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.warns(
        UserWarning, match=r"teacher-.*safetensors (is|differs) .*: the teacher's outputs are computed again"
    ):
        weights, rows, files = kept(tmp_path)
    assert toys.same(weights, truth)
    assert rows == [22, 21, 21, 16, 16, 16]
    assert files == [file]
    assert file.read_bytes() == content


def test_a_teacher_whose_code_is_another_is_found_before_the_first_step(tmp_path, monkeypatch):
    """Nothing that could be hashed has changed."""
    _, _, (file,) = kept(tmp_path)
    forward = Counting.forward
    monkeypatch.setattr(Counting, "forward", lambda self, images: forward(self, images) * 1.01)
    module = learner()
    before = toys.weights(module)
    with pytest.raises(UsageError, match=rf"logits are off by .*code has changed since the pass; delete {file}"):
        kept(tmp_path, module)
    assert toys.same(toys.weights(module), before)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(os, call, full)
    module = learner()
    with pytest.raises(
        OSError, match=r"write to cache_dir=.*cache.*\(No space left on device\): free space,"
    ) as failure:
        kept(tmp_path, module)
    assert "\n" not in str(failure.value)
    assert not [*(tmp_path / "cache").iterdir()]
    assert module.teacher.rows == ([22] if call == "posix_fallocate" else [22, 21, 21])  # at the earliest


def test_a_folder_that_is_none_is_one_clear_line(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"write to cache_dir=.*cache. \((File exists|Not a directory)\)"):
        kept(tmp_path)


def test_a_pass_that_is_cut_off_leaves_nothing(tmp_path):
    module = learner()
    module.teacher.rows = Stopping()
    with pytest.raises(InterruptedError):
        kept(tmp_path, module)
    assert not [*(tmp_path / "cache").iterdir()]


class Stopping(list):
    def append(self, rows):
        super().append(rows)
        if len(self) == 2:
            raise InterruptedError


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


# ---- data modules of others


class Texts(LightningDataModule):
    """Batches are mappings, and there is no more in it than the cache asks for."""

    training_is_random = False

    def __init__(self, **changes) -> None:
        super().__init__()
        self.batches = toys.Loader(
            [
                {
                    "words": torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(i)),
                    "mask": torch.rand(8, 5, generator=torch.Generator().manual_seed(i)) > 0.3,
                    "label": torch.arange(8),
                    "index": torch.arange(8, dtype=torch.int32) + 8 * i,
                    **{name: value(i) for name, value in changes.items()},
                }
                for i in range(3)
            ]
        )

    def train_dataloader(self):
        return self.batches

    def train_rows(self, rank, world_size, batch_size):
        return reversed(self.batches.batches)


class Reader(nn.Module):
    """Logits of each text, or of each of its words, which lie before or behind the texts."""

    def __init__(self, seed: int, pools: bool = True, transposes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.each = nn.Embedding(9, 10), nn.Identity()
        self.pools, self.transposes, self.calls = pools, transposes, 0

    def forward(self, words, mask):
        self.calls += 1
        shown = self.words(words) * mask.unsqueeze(2)
        each = self.each(shown.transpose(0, 1) if self.transposes else shown)
        return {"logits": shown.mean(dim=1) if self.pools else each}


def reader(**changes) -> OfflineDistiller:
    terms = {"kd": Term(KDLoss(3.0)), "each": Term(FeatureMSELoss(), student="each", teacher="each")}
    return OfflineDistiller(Reader(0, **changes), Reader(1, **changes), terms, lambda p: torch.optim.SGD(p, lr=1.0))


def test_a_data_module_of_anyones_whose_batches_are_mappings(tmp_path):
    live, cached = reader(), reader()
    truth = fit(tmp_path, live, datamodule=Texts())
    weights = fit(tmp_path, cached, TeacherCache(tmp_path / "cache"), datamodule=Texts())
    assert not toys.same(truth, toys.weights(reader()))
    assert toys.same(weights, truth)
    assert (live.teacher.calls, cached.teacher.calls) == (9, 6)
    again = reader()
    assert toys.same(fit(tmp_path, again, TeacherCache(tmp_path / "cache"), datamodule=Texts()), truth)
    assert again.teacher.calls == 3


def longer(i: int) -> torch.Tensor:
    return torch.ones(8, 5 + i, dtype=torch.int64)


@pytest.mark.parametrize(
    ("module", "changes", "complaint"),
    [
        (lambda: reader(transposes=True), {}, r"the teacher's each is \(5, 8, 10\) for 8 rows, not one entry a row"),
        (
            lambda: reader(pools=False),
            {"words": longer, "mask": longer},
            r"the teacher's \w+ is \(7, 10\) for some rows and \(6, 10\) for others: bring all inputs to one size",
        ),
        (reader, {"words": lambda _: ["a"] * 8}, "'words' of the inputs is not a tensor with rows, but list"),
        (reader, {"mask": lambda _: torch.ones(1, 5)}, r"inputs have \[8, 1\] rows"),
    ],
)
def test_what_is_no_table_is_refused(module, changes, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module(), TeacherCache(), datamodule=Texts(**changes))
    assert "\n" not in str(refusal.value)


class Unsteady(MNISTDataModule):
    """Gives other rows each time that they are walked over."""

    changes = None

    def train_rows(self, rank=0, world_size=1, batch_size=None, view=0):
        self.walks = getattr(self, "walks", -1) + 1
        return self.changes([*super().train_rows(rank, world_size, batch_size, view)], self.walks)


@pytest.mark.parametrize(
    "changes",
    [
        lambda batches, walk: batches[walk % 2 :] + batches[: walk % 2],  # another order
        lambda batches, walk: batches[: 3 - walk],  # less
        lambda batches, walk: [*batches, *batches[:walk]],  # more
    ],
)
def test_rows_that_are_others_each_time_are_refused(changes, tmp_path):
    datamodule = augmented(kind=Unsteady)
    datamodule.changes = changes
    with pytest.raises(ValueError, match=r"train_rows\(\) returns other rows or another order each time"):
        fit(tmp_path, learner(), TeacherCache(), datamodule=datamodule)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"memory_limit_mib": 0}, "memory_limit_mib=0 must be above 0"),
        ({"memory_limit_mib": float("nan")}, "memory_limit_mib=nan must be above 0"),
        ({"precision": "fp8"}, "precision='fp8' must be .trainer. or .bf16."),
    ],
)
def test_a_bad_argument_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        TeacherCache(**arguments)


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
        (
            lambda: learner(on_parameters()),
            data,
            [],
            r"cannot cache terms on teacher parameters \(network\.6\.weight\)",
        ),
        (of_the_batch, data, [], "BatchNorm has no running statistics"),
        (toys.classifier, data, [], "Classifier has no frozen teacher whose inputs are rows of the data"),
        (learner, lambda: toys.Loader([*data().train_dataloader()]), [], r"no train_rows\(\)"),
        (learner, lambda: data(WithoutIndex), [], "batches have target and no `index`"),
        (learner, lambda: data(augmentation=toys.Noise()), [], "data's `num_augmented_views` to a number"),
        (learner, data, [TeacherFreezing(unfreeze_at=1)], "the teacher is not frozen"),
    ],
)
def test_what_a_look_up_cannot_stand_in_for_is_refused(module, datamodule, callbacks, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module(), *callbacks, TeacherCache(), datamodule=datamodule())
    assert "\n" not in str(refusal.value)


def test_a_pass_in_bfloat16_is_refused_where_it_would_not_be_one(tmp_path):
    with pytest.raises(ValueError, match="precision='bf16' cannot autocast a teacher in 64-true"):
        fit(tmp_path, learner(), TeacherCache(precision="bf16"), precision="64-true")


class Stops(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        assert pl_module.teacher_source is not None
        raise RuntimeError("stop")


def test_the_teacher_is_back_in_its_place_when_the_fit_is_over(tmp_path):
    module = learner()
    fit(tmp_path, module, TeacherCache(), max_epochs=1)
    assert module.teacher_source is None
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, module, TeacherCache(), Stops(), max_epochs=1)
    assert module.teacher_source is None


class Halved(OfflineDistiller):
    def run_teacher(self, batch):
        return {"logits": super().run_teacher(batch)["logits"] / 2}


def test_a_schemes_own_way_to_watch_its_teacher_is_what_is_cached(tmp_path):
    def halved():
        return Halved(toys.network(seed=1), Counting(), toys.terms(), lambda p: torch.optim.SGD(p, lr=0.1))

    truth, weights = fit(tmp_path, halved()), fit(tmp_path, halved(), TeacherCache())
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
