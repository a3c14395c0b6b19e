"""The task loss of labels that can hold together: binary cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import UNLABELED, DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.targets import check_labels, of_one_shape


def binary_task_loss(student: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the student's logits against labels, averaged over batch and labels.

    L = -1/(N C) sum_nc t_nc log sigmoid(z_nc) + (1 - t_nc) log sigmoid(-z_nc)

    Args:
        student: Logits (N, C) of C labels, or of one binary label (N, 1) or (N,).
        target: Labels of 0 and 1 of any type, or probabilities, of the student's shape; of one binary label also (N,)
            beside (N, 1). A whole number of -100 is an unknown label, which does not count; of none that counts the
            loss is 0.

    Raises:
        UsageError: The shapes do not fit each other, or a label lies outside [0, 1].

    Example:
        >>> import torch
        >>> binary_task_loss(torch.zeros(2, 4), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
        tensor(0.6931)
    """
    student, target = _fitted(student, target)
    check_labels(target, UNLABELED)
    return _mean(student, target)


class BinaryTaskLoss(DistillationLoss):
    """Binary cross-entropy against labels that can hold together, or one binary label; see `binary_task_loss`.

    Its term has no teacher: ``Term(BinaryTaskLoss(), teacher=None)``. The values of labels are checked in the first
    call only, because that waits for the device.
    """

    label_kind = "multilabel"
    takes_rows = True
    needs_target = True

    def __init__(self) -> None:
        super().__init__()
        self.is_checked = False

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the task loss of logits (N, C); `teacher` is unused."""
        student, target = _fitted(student, target)
        if not self.is_checked:
            check_labels(target, UNLABELED)
            self.is_checked = True
        return _mean(student, target)


def _fitted(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return of_one_shape(student, target, "labels of 0 and 1, one for each logit; class indices (N,) need TaskLoss")


def _mean(student: Tensor, target: Tensor) -> Tensor:
    logits = upcast(student)
    if target.is_floating_point() or target.dtype.itemsize == 1:  # bool and uint8 cannot be -100
        return functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    counts = target != UNLABELED
    total = functional.binary_cross_entropy_with_logits(
        logits, (target * counts).to(logits.dtype), counts.to(logits.dtype), reduction="sum"
    )
    return total / counts.sum().clamp(min=1)
