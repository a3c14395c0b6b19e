"""The task loss: cross-entropy against labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import UNLABELED, DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, upcast
from kd_lightning.losses.common.targets import check_distributions


def task_loss(student: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the student's logits against labels, averaged over the labeled samples of the batch.

    L = -1/N sum_n sum_c t_nc log softmax(z_n)_c, with t one-hot for class indices.

    Args:
        student: Logits (N, C).
        target: Class indices (N,), of which -100 is an unlabeled sample, or probabilities (N, C), such as mixup gives.
            Of no labeled sample the loss is 0.
        label_smoothing: Share of each target spread evenly over all classes, in [0, 1].

    Raises:
        UsageError: The shapes or types do not fit each other, probabilities do not sum to 1 (labels that can hold
            together), or `label_smoothing` is not in [0, 1].

    Example:
        >>> import torch
        >>> task_loss(torch.zeros(2, 10), torch.tensor([3, 7]))
        tensor(2.3026)
    """
    check_fraction(label_smoothing, "label_smoothing")
    if _are_probabilities(student, target):
        check_distributions(target)
    return _mean(student, target, label_smoothing)


class TaskLoss(DistillationLoss):
    """Cross-entropy against labels; see `task_loss`. Its term has no teacher: ``Term(TaskLoss(), teacher=None)``.

    That probabilities sum to 1 is checked in the first call only, because that waits for the device.

    Args:
        label_smoothing: Share of each target spread evenly over all classes, in [0, 1].
    """

    label_kind = "classes"
    takes_rows = True
    needs_target = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_fraction(label_smoothing, "label_smoothing")
        self.is_checked = False

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the task loss of logits (N, C); `teacher` is unused."""
        if not self.is_checked:
            if _are_probabilities(student, target):
                check_distributions(target)
            self.is_checked = True
        return _mean(student, target, self.label_smoothing)


def _are_probabilities(student: Tensor, target: Tensor) -> bool:
    return target.is_floating_point() and target.shape == student.shape and target.dim() == 2


def _mean(student: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    indices = target.shape == student.shape[:1] and target.dtype in (torch.int64, torch.uint8)
    probabilities = target.shape == student.shape and target.is_floating_point()
    if student.dim() != 2 or student.shape[0] < 1 or student.shape[1] < 2 or not (indices or probabilities):
        raise UsageError(
            f"logits {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: logits are "
            "(N, C), N >= 1 and C >= 2, targets int64 class indices (N,) or floating-point probabilities (N, C); "
            "labels that can hold together need BinaryTaskLoss, real values RegressionTaskLoss"
        )
    if target.dtype != torch.int64:
        return functional.cross_entropy(upcast(student), target, label_smoothing=label_smoothing)
    labeled = (target != UNLABELED).any()  # without any the mean is 0 / 0: that of other labels, times 0
    target = target.where(labeled, 0)
    return functional.cross_entropy(upcast(student), target, label_smoothing=label_smoothing) * labeled
