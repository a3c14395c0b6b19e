"""Offline distillation: a frozen teacher and a student, the scheme that most methods share."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class OfflineDistiller(FrozenTeacher):
    """A student learns from a frozen teacher by any set of terms.

    L = sum_k w_k L_k(student's activations, teacher's activations, labels)

    The student and the losses' own parameters (connectors) are trained; the teacher is frozen, in eval mode, and in no
    optimizer and no checkpoint, by construction. The student is the inference network. Its baseline is a `Classifier`
    with the same student, data and steps. Logged are ``train/<term>`` and ``train/loss`` in training and the metrics of
    `Learner` in evaluation.

    Args:
        student: The network to train; the inference network.
        teacher: The network that teaches; it is frozen and excluded from every checkpoint.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: Teacher and student share parameters that learn.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=4.0), weight=0.9)}
        >>> learner = OfflineDistiller(StudentConvNet(), TeacherConvNet(), terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task']
        >>> any("teacher" in key for key in learner.state_dict())
        False
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        self.teacher = teacher

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term from the activations of student and teacher on the same batch."""
        batch = self.split_batch(batch)
        return self.terms.losses(self.student_activations(batch), self.teacher_activations(batch), batch.labels)
