"""A weighted mean of KL divergence and absolute error on soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import mean_divergence


def kl_mae_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, alpha: float = 0.5) -> Tensor:
    """Weighted mean of the KL divergence of soft labels and their mean absolute error.

    L = a T^2 / N sum_n KL(p_n || q_n) + (1 - a) / (N C) sum_nc |q_nc - p_nc|

    with p = softmax(t / T) and q = softmax(s / T).

    With a = 1 it is `kd_loss`; with a = 0 it is the mean absolute error of the soft labels alone, whose gradient is
    bounded, however large the error.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.
        alpha: The weight a of the divergence, in [0, 1].

    Raises:
        UsageError: The shapes differ, the temperature is not a finite number above 0, or `alpha` is not in [0, 1].

    Example:
        >>> import torch
        >>> kl_mae_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), temperature=4.0, alpha=0.0)
        tensor(0.2311)
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    check_fraction(alpha, "alpha")
    log_student = functional.log_softmax(upcast(student) / temperature, dim=1)
    log_teacher = functional.log_softmax(upcast(teacher) / temperature, dim=1)
    kl = mean_divergence(log_student, log_teacher, temperature) * temperature**2
    return alpha * kl + (1 - alpha) * functional.l1_loss(log_student.exp(), log_teacher.exp())


class KLMAELoss(DistillationLoss):
    """KL mixed with the mean absolute error on soft labels; see `kl_mae_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        alpha: The weight of the divergence, in [0, 1]; that of the absolute error is 1 - alpha.
    """

    takes_rows = True
    softmax_over_classes = True

    def __init__(self, temperature: float = 4.0, alpha: float = 0.5) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.alpha = check_fraction(alpha, "alpha")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return kl_mae_loss(student, teacher, self.temperature, self.alpha)
