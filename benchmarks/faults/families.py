"""The runs that faults are injected into: three epochs of four batches, one run of each family of schemes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from benchmarks.faults import workers
from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import FastLoop, TeacherCache
from kd_lightning.losses import CAMKDLoss, CRDLoss, HintLoss, TaskLoss
from kd_lightning.networks import Ensemble
from tests import run_rows, toys
from tests.callbacks import test_fault_tolerance_saves as fault_tolerance
from tests.callbacks.teachers import twins
from tests.schemes.adversarial import test_adversarial_distiller as adversarial
from tests.schemes.cross_modal import test_cross_modal as cross_modal
from tests.schemes.data_free import test_data_free as data_free
from tests.schemes.few_shot import test_few_shot as few_shot
from tests.schemes.online import test_mutual as mutual
from tests.schemes.self import test_self_distiller as self_distillation


@dataclass(frozen=True)
class Family:
    """A run that can be built again and again, each time the same."""

    module: Callable[[], LightningModule]
    callbacks: Callable[[], Sequence[Callback]] = list
    data: Callable[[], LightningDataModule] = run_rows.with_validation
    other: str = "teacher"
    """Dotted name of a network or layer whose outputs the student learns from; empty for the callback's teacher."""
    student: str = "student"
    """Dotted name of the network that learns."""
    validates: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    """Arguments of the trainer."""
    ends_at_the_last_step: bool = True
    """False where the end of the fit changes the weights in memory, which no resume after the last step repeats."""


def _offline(
    terms: dict[str, Term], student: nn.Module | None = None, teacher: nn.Module | None = None
) -> OfflineDistiller:
    task = {"task": Term(TaskLoss(), weight=0.5, teacher=None)}
    return OfflineDistiller(student or toys.network(8, seed=1), teacher or toys.network(16, seed=2), task | terms)


def _feature() -> LightningModule:
    torch.manual_seed(3)
    networks = self_distillation.network(), self_distillation.network()
    return _offline({"hint": Term(HintLoss(8, 8), student="2", teacher="2", weight=0.1)}, *networks)


def _contrastive() -> LightningModule:
    torch.manual_seed(3)
    loss = CRDLoss(student_channels=8, teacher_channels=16, num_samples=60_000, dim=4, negatives=32)
    return _offline({"crd": Term(loss, student="4", teacher="4", target=["target", "index"], weight=0.1)})


def _teachers() -> LightningModule:
    ensemble = Ensemble([toys.network(16, seed=2), toys.network(12, seed=3)])
    return _offline({"kd": Term(CAMKDLoss(temperature=4.0), weight=0.5)}, teacher=ensemble)


FAMILIES = {
    "response": Family(toys.offline),
    "feature": Family(_feature, other="teacher.2"),
    "relation, memory bank": Family(_contrastive, other="teacher.4"),
    "several teachers": Family(_teachers, other="teacher.members.1"),
    "online": Family(mutual.mutual, other="peers.1"),
    "self": Family(
        lambda: self_distillation.byot(deploy="student.network"), other="student.network.4", student="student.network"
    ),
    "adversarial": Family(adversarial.learner),
    "cross-modal": Family(cross_modal.learner, data=lambda: cross_modal.data(val_size=32)),
    "graph": Family(cross_modal.of_graphs, data=cross_modal.graph_data),
    "few-shot": Family(few_shot.learner, other="teacher.conv.0"),
    "data-free": Family(fault_tolerance.zskt, data=data_free.numbers, validates=False),
    "drop-in": Family(fault_tolerance.Users, fault_tolerance.distillation, other="", student="network"),
}
"""By name, in the order of the table."""


def _evolving(case: Callable[[], toys.Case]) -> Family:
    return Family(lambda: case().learner, lambda: case().callbacks)


def _other(*callbacks: Callable[[], Callback], **changes: Any) -> Family:
    return Family(toys.offline, lambda: [make() for make in callbacks], changes=changes)


def _averaged() -> Family:
    return Family(toys.offline, lambda: [EMAWeightAveraging(decay=0.9)], ends_at_the_last_step=False)


SETTINGS = {
    "EMA teacher": _evolving(twins.momentum),
    "snapshot teacher": _evolving(twins.snapshot),
    "born again": _evolving(twins.born_again),
    "averaged weights": _averaged(),
    "accumulated gradients": _other(accumulate_grad_batches=2),
    "validation in epochs": _other(val_check_interval=2),
    "Lightning's loop": _other(lambda: FastLoop(enabled=False)),
    "cached teacher": Family(
        toys.offline,
        lambda: [TeacherCache("cache")],
        lambda: run_rows.with_validation(augmentation=None),
        other="student.6",  # the cache would find another output of the teacher
    ),
    "loader with a worker": Family(toys.offline, data=workers.WorkerData),
    "bf16 precision": _other(precision="bf16-mixed"),
}
"""Runs of one family under other settings and callbacks."""
FAMILIES |= SETTINGS


def network_of(family: Family, module: LightningModule, callbacks: Sequence[Callback], name: str) -> nn.Module:
    """Give the student or the other network of a run; the drop-in callback has the teacher, and the module has none."""
    if name:
        first, _, rest = name.partition(".")
        root: Any = getattr(module, first)  # a frozen teacher is an attribute, and no submodule
        return root.get_submodule(rest) if rest else root
    held: Any = next(each for each in callbacks if hasattr(each, "held"))
    return held.teacher
