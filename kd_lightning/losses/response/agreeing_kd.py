"""Response distillation restricted to samples on which student and teacher predict the same class."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import divergences


def agreeing_kd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of samples with the same predicted class, averaged over all samples.

    L = T^2 / N sum_n [argmax s_n = argmax t_n] KL(softmax(t_n / T) || softmax(s_n / T))

    Gongfan Fang, Jie Song, Xinchao Wang, Chengchao Shen, Xingen Wang, Mingli Song: Contrastive Model Inversion for
    Data-Free Knowledge Distillation. IJCAI 2021 (arXiv:2105.08584), with weight .5 and T = 1. With a negative weight
    the loss moves inputs towards the student's decision boundaries, but not across those of the teacher.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes differ, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> agreeing_kd_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
        tensor(0.0336)
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    log_student, log_teacher = ((upcast(side) / temperature).log_softmax(dim=1) for side in (student, teacher))
    agree = student.argmax(dim=1) == teacher.argmax(dim=1)
    return (divergences(log_student, log_teacher, temperature) * agree).mean() * temperature**2


class AgreeingKDLoss(DistillationLoss):
    """Divergence where both predict the same class (Fang et al. 2021, arXiv:2105.08584); see `agreeing_kd_loss`.

    Args:
        temperature: T > 0; higher is softer.
    """

    takes_rows = True
    softmax_over_classes = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return agreeing_kd_loss(student, teacher, self.temperature)
