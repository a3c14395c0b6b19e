"""Runs in which the teacher evolves, shared by their tests."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import (
    BornAgain,
    EMATeacher,
    PiecewiseConstant,
    SnapshotTeacher,
    TermWeightSchedule,
)
from kd_lightning.losses import SoftCrossEntropyLoss, TaskLoss
from kd_lightning.networks import is_frozen
from tests import toys


class ConnectedLoss(nn.Module):
    """A loss that learns a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.connector = nn.Linear(10, 10)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def twins(**terms: Term) -> OfflineDistiller:
    student, teacher = toys.network(seed=1), toys.network(seed=2)
    return OfflineDistiller(student, teacher, terms or toys.terms(), sgd, halving, lr_interval="step")


def momentum() -> toys.Case:
    return toys.Case(twins(), [EMATeacher(0.7)])


def snapshot() -> toys.Case:
    return toys.Case(twins(), [SnapshotTeacher(3, "step")])  # cycles that begin within epochs and between them


def born_again() -> toys.Case:
    return toys.Case(twins(**toys.terms(), hint=Term(ConnectedLoss(), weight=0.1)), [BornAgain(1, seed=5)])


def ps_kd() -> toys.Case:
    terms = {"task": Term(TaskLoss(), teacher=None), "past": Term(SoftCrossEntropyLoss(temperature=1.0))}
    share = {0: 0.0, 1: 0.8 * 2 / 3, 2: 0.8}
    weights = {"task": {epoch: 1 - a for epoch, a in share.items()}, "past": share}
    schedules = [TermWeightSchedule(term, PiecewiseConstant(values), unit="epoch") for term, values in weights.items()]
    return toys.Case(twins(**terms), [SnapshotTeacher(1), *schedules])


CASES = {"momentum": momentum, "snapshot": snapshot, "born_again": born_again, "ps_kd": ps_kd}

every_case = pytest.mark.parametrize("name", CASES)


class Kept(Callback):
    """Each batch, and what was made of it: student and teacher before it, student after it, the terms' losses."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.losses: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((batch[0].clone(), batch[1].clone()))

    def on_before_backward(self, trainer, pl_module, loss):
        self.before.append(toys.weights(pl_module))
        assert is_frozen(pl_module.teacher)
        assert not any(parameter.requires_grad for parameter in pl_module.teacher.parameters())
        assert not any(module.training for module in pl_module.teacher.modules())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(toys.weights(pl_module))
        self.losses.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def run(case: toys.Case, folder, *callbacks, ckpt_path=None, **changes) -> tuple[OfflineDistiller, Kept]:
    kept = Kept()
    trainer = toys.trainer(folder, *callbacks, *case.callbacks, kept, **changes)
    trainer.fit(case.learner, toys.data(), ckpt_path=ckpt_path)
    return case.learner, kept


def kd(logits: Tensor, soft: Tensor, temperature: float = 3.0) -> Tensor:
    p, q = (values.div(temperature).softmax(dim=1) for values in (soft, logits))
    return temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()


def half_each(_, logits: Tensor, soft: Tensor, y: Tensor) -> Tensor:
    return 0.5 * functional.cross_entropy(logits, y) + 0.5 * kd(logits, soft)
