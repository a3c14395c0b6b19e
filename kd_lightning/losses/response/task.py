"""The task loss: cross-entropy against labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, upcast


def task_loss(student: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the student's logits against labels, averaged over the batch.

    L = -1/N sum_n sum_c t_nc log softmax(z_n)_c, with t one-hot for class indices.

    Args:
        student: Logits (N, C).
        target: Class indices (N,), or probabilities (N, C), such as mixup gives.
        label_smoothing: Share of each target spread evenly over all classes, in [0, 1].

    Raises:
        UsageError: The shapes or types do not fit each other, or `label_smoothing` is not in [0, 1].

    Example:
        >>> import torch
        >>> task_loss(torch.zeros(2, 10), torch.tensor([3, 7]))
        tensor(2.3026)
    """
    check_fraction(label_smoothing, "label_smoothing")
    indices = target.shape == student.shape[:1] and target.dtype in (torch.int64, torch.uint8)
    probabilities = target.shape == student.shape and target.is_floating_point()
    if student.dim() != 2 or student.shape[0] < 1 or student.shape[1] < 2 or not (indices or probabilities):
        raise UsageError(
            f"logits {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: logits are "
            "(N, C), N >= 1 and C >= 2, targets int64 class indices (N,) or floating-point probabilities (N, C)"
        )
    return functional.cross_entropy(upcast(student), target, label_smoothing=label_smoothing)


class TaskLoss(DistillationLoss):
    """Cross-entropy against labels; see `task_loss`. Its term has no teacher: ``Term(TaskLoss(), teacher=None)``.

    Args:
        label_smoothing: Share of each target spread evenly over all classes, in [0, 1].
    """

    label_kind = "classes"
    takes_rows = True
    needs_target = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_fraction(label_smoothing, "label_smoothing")

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the task loss of logits (N, C); `teacher` is unused."""
        return task_loss(student, target, self.label_smoothing)
