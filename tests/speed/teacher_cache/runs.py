"""Learners, data and fits that the tests of the teacher cache share."""

import errno
import os

import torch
from torch import nn

from kd_lightning import OfflineDistiller
from kd_lightning.callbacks import TeacherCache
from kd_lightning.data import MNISTDataModule
from tests import toys


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


class HintLike(nn.Module):
    """Compares a layer's mean with those of two layers of unlike shapes."""

    def forward(self, student, teacher, target=None):
        return sum((student.mean(dim=1) - shown.flatten(1).mean(dim=1)).square().mean() for shown in teacher)


class Normalised(MNISTDataModule):
    """Prepares each batch where Lightning lets it."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return x - 0.5, *labels

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *labels = batch
        return 2 * x, *labels


def augmented(**changes):
    return data(augmentation=toys.Noise(), **{"num_augmented_views": 2} | changes)


def kept(folder, module=None, datamodule=None, **changes):
    """A run with a folder: its weights, the rows that its teacher was asked about, and the files there."""
    module = module or learner()
    cache = {"memory_limit_mib": changes.pop("memory_limit_mib", 1024), "precision": changes.pop("halves", "trainer")}
    weights = fit(folder, module, TeacherCache(folder / "cache", **cache), datamodule=datamodule, **changes)
    return weights, module.teacher.rows, sorted((folder / "cache").iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Halved(OfflineDistiller):
    def run_teacher(self, batch):
        return {"logits": super().run_teacher(batch)["logits"] / 2}
