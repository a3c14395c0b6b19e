"""Small networks, data and trainers that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.callbacks import ExactResume
from kd_lightning.data import MNIST, MNISTDataModule
from kd_lightning.data.sources.base import LabeledImages
from kd_lightning.losses import KDLoss, TaskLoss

ACCELERATOR = os.environ.get("KD_TEST_ACCELERATOR", "cpu")
"""What the runs of the tests are made on: `make test-gpu` says gpu."""


class Case(NamedTuple):
    """A run that the tests of every scheme and callback make: see `tests/test_every_scheme.py`."""

    learner: LightningModule
    callbacks: Sequence[Callback] = ()
    data: Callable[..., LightningDataModule] | None = None
    """`data` below unless given; takes the same changes."""
    settle: Callable[[Any], object] = lambda _: None
    """Takes what a scheme draws at random out of it: ranks draw each for itself, as dropout does."""


class Noise(nn.Module):
    """A random augmentation of one image."""

    def forward(self, image: Tensor) -> Tensor:
        return (image + 0.1 * torch.randn_like(image)).clamp(0, 1)


def network(width: int = 8, seed: int = 0) -> nn.Module:
    """Pool, dropout and BatchNorm: everything that a resume or a freeze can get wrong."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(3 * 49, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, 10),
    )


def terms() -> dict[str, Term]:
    return {"task": Term(TaskLoss(), weight=0.5, teacher=None), "kd": Term(KDLoss(temperature=3.0), weight=0.5)}


def classifier() -> Classifier:
    return Classifier(network(seed=1))


def offline() -> OfflineDistiller:
    return OfflineDistiller(network(seed=1), network(width=16, seed=2), terms())


LEARNERS = {"classifier": classifier, "offline": offline}


def data(**changes: Any) -> MNISTDataModule:
    return MNISTDataModule(**{"batch_size": 16, "train_size": 64, "val_size": 0, "augmentation": Noise()} | changes)


class FewDigits(MNIST):
    """The first 1,000 training and test digits, for what would take long on all of them."""

    num_train = 1000

    def train(self) -> LabeledImages:
        return LabeledImages(*(tensor[:1000] for tensor in super().train()))

    def test(self) -> LabeledImages:
        return LabeledImages(*(tensor[:1000] for tensor in super().test()))


class Loader:
    """Batches as they are, again in each epoch."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def trainer(folder: Any, *callbacks: Callback, **changes: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=[ExactResume(seed=0), *callbacks], **defaults | changes)


def strategy(learner: LightningModule, ranks: int) -> dict[str, Any]:
    """Of so many processes: players that move one at a time have gradients one at a time."""
    turns = "ddp" if learner.automatic_optimization else "ddp_find_unused_parameters_true"
    return {"strategy": turns, "devices": ranks} if ranks > 1 else {}


def weights(learner: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
