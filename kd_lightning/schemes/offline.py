"""A frozen teacher teaches a student: the flow that most methods share."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.learner import Batch, Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.networks import freeze, leave_out
from kd_lightning.networks.freezing import check_apart
from kd_lightning.taps import Activations, differentiable, tap
from kd_lightning.terms import Term


class OfflineDistiller(Learner):
    """A student learns from a teacher that does not.

    The teacher is frozen, in eval, not optimised and in no checkpoint, by construction. What is learned from it is a
    matter of the terms.

    Args:
        student: The network that learns and that is deployed.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        terms: The losses by name, each with its addresses and weight.
        optimizer: Builds the optimizer from the parameters that learn.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: Whether the scheduler moves at each optimizer step or at each epoch.

    Raises:
        UsageError: Teacher and student share parameters.

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
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval)
        check_apart(student, teacher)
        self.teacher = leave_out(freeze(teacher))

    def watch_teacher(self, batch: Batch) -> Activations:
        """What the teacher gives for its input, at every layer that a term addresses."""
        inputs = differentiable(batch.teacher) if self.differentiates else batch.teacher
        return tap(self.teacher, inputs, self.layers("teacher"))

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of what student and teacher give for the same batch."""
        batch = self.split_batch(batch)
        return self.compare(self.watch_student(batch), self.watch_teacher(batch), batch.labels)
