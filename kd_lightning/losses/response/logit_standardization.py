"""Distillation of standardized logits, independent of their scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_temperature, upcast
from kd_lightning.losses.response.kd import kd_loss


def logit_standardization_kd_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Hinton's loss between z-scores: each sample's logits less their mean, over their standard deviation.

    L = T^2 / N sum_n KL(softmax(Z(t_n) / T) || softmax(Z(s_n) / T)), Z(z) = (z - mean(z)) / std(z)

    Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao: Logit Standardization in Knowledge Distillation. CVPR
    2024 (arXiv:2403.01427), with T = 2 and a weight of 9. The student does not have to match the teacher's range of
    logits.

    The standard deviation divides by C - 1, as in the authors' code. Dividing by C would lower the temperature by the
    factor sqrt((C - 1) / C). Their code adds 1e-7 to the deviation; here one below 1e-3 is replaced by 1e-3, so that
    the gradient for (nearly) equal logits, which is proportional to 1 / std, stays within the range of half precision.

    Teacher logits of minus infinity (masked classes) keep probability 0; the teacher's mean and deviation, and C, are
    those of its finite logits.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes differ, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[4.0, 2.0, 0.0]])
        >>> logit_standardization_kd_loss(torch.zeros(1, 3), teacher)
        tensor(0.3137)
        >>> logit_standardization_kd_loss(0.1 * teacher + 7.0, teacher) < 1e-6
        tensor(True)
    """
    check_logits(student, teacher)
    student, teacher = upcast(student), upcast(teacher)
    classes = torch.full_like(student[:, :1], student.shape[1])
    absent = teacher == -math.inf
    finite, count = teacher.masked_fill(absent, 0), classes - absent.sum(dim=1, keepdim=True)
    centred = (finite - finite.sum(dim=1, keepdim=True) / count).masked_fill(absent, 0)
    teacher = _standardized(centred, count).masked_fill(absent, -math.inf)
    return kd_loss(_standardized(student - student.mean(dim=1, keepdim=True), classes), teacher, temperature)


class LogitStandardizationKDLoss(DistillationLoss):
    """Distillation of standardized logits (Sun et al. 2024, arXiv:2403.01427); see `logit_standardization_kd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
    """

    takes_rows = True
    softmax_over_classes = True

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return logit_standardization_kd_loss(student, teacher, self.temperature)


def _standardized(centred: Tensor, count: Tensor) -> Tensor:
    """Divide rows of mean 0 by the standard deviation of their `count` (N, 1) entries."""
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / (count - 1).clamp(min=1).sqrt()
    return centred / deviation.clamp(min=1e-3)
