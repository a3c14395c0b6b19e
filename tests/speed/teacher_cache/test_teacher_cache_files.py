"""The file of a teacher cache: used again, stale, damaged, or not to be written."""

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from kd_lightning import Term, UsageError
from kd_lightning.callbacks import TeacherCache
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import KDLoss
from tests import toys
from tests.speed.teacher_cache.runs import (
    Counting,
    Halved,
    HintLike,
    Normalised,
    augmented,
    data,
    fit,
    full,
    kept,
    learner,
)

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


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
