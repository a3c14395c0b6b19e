"""Curriculum temperature: distillation at a temperature that is trained to increase the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import mean_divergence


def ctkd_loss(
    student: Tensor, teacher: Tensor, theta: Tensor, reversal: float = 1.0, lowest: float = 1.0, width: float = 20.0
) -> Tensor:
    """Hinton's loss at a learned temperature, whose gradient is reversed so that training increases the loss.

    L = T^2 / N sum_n KL(softmax(t_n / T) || softmax(s_n / T)), T = T_0 + R sigmoid(theta)

    Value and student gradient are those of `kd_loss` at T; the gradient of theta is -lambda dL / dtheta.

    Zheng Li, Xiang Li, Lingfeng Yang, Borui Zhao, Renjie Song, Lei Luo, Jun Li, Jian Yang: Curriculum Temperature for
    Knowledge Distillation. AAAI 2023 (arXiv:2211.16231), with one T for all samples ("Global-T"). The authors' code
    has T_0 = 1, R = 20 and an initial theta of 1, which is T = 15.6.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        theta: The learned parameter, a scalar.
        reversal: The strength lambda of the reversal, in [0, 1].
        lowest: T_0 > 0, the lower bound of T.
        width: R > 0; T is below T_0 + R.

    Raises:
        UsageError: The shapes differ, `reversal` is not in [0, 1], or a bound is not a finite number above 0.

    Example:
        >>> theta = torch.ones((), requires_grad=True)
        >>> loss = ctkd_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), theta)
        >>> loss
        tensor(1.9837, grad_fn=<MulBackward0>)
        >>> loss.backward()
        >>> theta.grad < 0  # the loss grows with T here, and the optimizer's step makes both larger
        tensor(True)
    """
    check_logits(student, teacher)
    check_fraction(reversal, "reversal")
    check_temperature(lowest, "lowest")
    check_temperature(width, "width")
    temperature = lowest + width * _reversed(theta, reversal).sigmoid()
    log_student = functional.log_softmax(upcast(student) / temperature, dim=1)
    log_teacher = functional.log_softmax(_divided(upcast(teacher), temperature), dim=1)
    return mean_divergence(log_student, log_teacher, lowest + width) * temperature**2


class CTKDLoss(DistillationLoss):
    """Distillation at a learned temperature (Li et al. 2023, arXiv:2211.16231); see `ctkd_loss`.

    The student's optimizer also trains `theta`. In the paper's curriculum the strength of the reversal follows a cosine
    over the first 10 of 240 epochs: ``LossSchedule("kd", "reversal", Cosine(0.0, 1.0, 10), unit="epoch")``.

    Args:
        lowest: Lower bound of the temperature, above 0.
        width: The temperature is below `lowest` + `width`; above 0.
        reversal: The strength of the reversal, in [0, 1]. A `LossSchedule` may change it.

    Raises:
        UsageError: An argument is out of range.
    """

    takes_rows = True
    softmax_over_classes = True

    def __init__(self, lowest: float = 1.0, width: float = 20.0, reversal: float = 1.0) -> None:
        super().__init__()
        self.lowest = check_temperature(lowest, "lowest")
        self.width = check_temperature(width, "width")
        self.reversal = check_fraction(reversal, "reversal")
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """The current temperature, for logging; a tensor, so that no schedule changes it."""
        return self.lowest + self.width * self.theta.detach().sigmoid()

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return ctkd_loss(student, teacher, self.theta, self.reversal, self.lowest, self.width)


def _reversed(values: Tensor, strength: float) -> Tensor:
    """Return the values, with their gradient multiplied by -`strength`."""
    return (1 + strength) * values.detach() - strength * values


def _divided(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide logits, those of minus infinity without a gradient for the temperature."""
    absent = logits == -math.inf
    return (logits.masked_fill(absent, 0) / temperature).masked_fill(absent, -math.inf)
