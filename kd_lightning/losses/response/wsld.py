"""Weighted soft labels: weight each sample by the student's cross-entropy relative to the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_temperature, upcast
from kd_lightning.losses.common.classes import check_classes, labeled_mean
from kd_lightning.losses.common.divergence import divergences


def wsld_loss(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 2.0) -> Tensor:
    """Hinton's loss, weighted on each sample by both networks' cross-entropies against its label.

    L = T^2 / N sum_n w_n KL(softmax(t_n / T) || softmax(s_n / T)), w_n = 1 - exp(-CE(s_n) / CE(t_n))

    The cross-entropies are computed at T = 1, and no gradient flows through the weights. A weight is near 0 where the
    student is already correct, and near 1 where the teacher is much better.

    Helong Zhou, Liangchen Song, Jiajie Chen, Ye Zhou, Guoli Wang, Junsong Yuan, Qian Zhang: Rethinking Soft Labels for
    Knowledge Distillation: A Bias-Variance Tradeoff Perspective. ICLR 2021 (arXiv:2102.00650), with T = 2 and a weight
    of 2.5 beside the task loss.

    The paper has the cross-entropy with the soft targets instead of the divergence: larger by their entropy, with the
    same gradient. As in the authors' code, 1e-7 is added to CE(t): where both are 0, w = 0.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        target: Class indices (N,); samples of index -100, without a label, are left out of the mean.
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes do not fit each other, or the temperature is not a finite number above 0.

    Example:
        >>> wsld_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor(1.3113)
    """
    check_logits(student, teacher)
    check_classes(student, target)
    check_temperature(temperature)
    student, teacher = upcast(student), upcast(teacher)
    with torch.no_grad():
        classes = target.long()
        ce_student, ce_teacher = (functional.cross_entropy(x, classes, reduction="none") for x in (student, teacher))
        weights = -torch.expm1(-ce_student / (ce_teacher + 1e-7))
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return labeled_mean(weights * divergences(log_student, log_teacher, temperature), target) * temperature**2


class WSLDLoss(DistillationLoss):
    """Weighted soft labels (Zhou et al. 2021, arXiv:2102.00650); see `wsld_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
    """

    takes_rows = True
    needs_target = True
    skips_unlabeled = True

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (N, C) and class indices (N,)."""
        return wsld_loss(student, teacher, target, self.temperature)
