"""Mean squared error between logits."""

from __future__ import annotations

import math

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_outputs, upcast
from kd_lightning.losses.common.vectors import squared_error


def logit_mse_loss(student: Tensor, teacher: Tensor, teacher_scale: float = 1.0) -> Tensor:
    """Mean squared error between logits, over batch and classes.

    L = 1 / (N C) sum_nc (s_nc - f t_nc)^2

    Lei Jimmy Ba, Rich Caruana: Do Deep Nets Really Need to be Deep? NIPS 2014 (arXiv:1312.6184), with f = 1. The paper
    writes half the sum over classes: its weight w is w C / 2 here.

    The factor f serves Aref Jafari, Mehdi Rezagholizadeh, Pranav Sharma, Ali Ghodsi: Annealing Knowledge Distillation.
    EACL 2021 (arXiv:2104.07163), where f = 1 - (T - 1) / 10 increases while T decreases from 10 to 1.

    Args:
        student: Logits (N, C), or real-valued outputs (N, D), D = 1 included.
        teacher: Of the student's shape.
        teacher_scale: f, the factor of the teacher's logits.

    Raises:
        UsageError: The shapes differ, or `teacher_scale` is not finite.

    Example:
        >>> import torch
        >>> logit_mse_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]))
        tensor(8.)
    """
    check_outputs(student, teacher, "logits")
    teacher = upcast(teacher) if _check_finite(teacher_scale) == 1 else upcast(teacher) * teacher_scale
    return squared_error(upcast(student), teacher)


class LogitMSELoss(DistillationLoss):
    """Mean squared error between logits (Ba and Caruana 2014, arXiv:1312.6184); see `logit_mse_loss`.

    Args:
        teacher_scale: The factor of the teacher's logits. A `LossSchedule` may change it.
    """

    takes_rows = True

    def __init__(self, teacher_scale: float = 1.0) -> None:
        super().__init__()
        self.teacher_scale = _check_finite(teacher_scale)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return logit_mse_loss(student, teacher, self.teacher_scale)


def _check_finite(scale: float) -> float:
    if not math.isfinite(scale):
        raise UsageError(f"teacher_scale={scale} must be a finite number, e.g. 1.0")
    return scale
