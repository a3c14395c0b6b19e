"""A temperature that is learned against the student: it makes the distillation harder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import mean_divergence


def ctkd_loss(
    student: Tensor, teacher: Tensor, theta: Tensor, reversal: float = 1.0, lowest: float = 1.0, width: float = 20.0
) -> Tensor:
    """Hinton's loss at a temperature that is learned, by a gradient that is reversed, to make the loss larger.

    L = T^2 / N sum_n KL(softmax(t_n / T) || softmax(s_n / T)), T = T_0 + R sigmoid(theta)

    It has the value of `kd_loss` at T, and so has the student's gradient; theta receives -lambda dL / dtheta.

    Zheng Li, Xiang Li, Lingfeng Yang, Borui Zhao, Renjie Song, Lei Luo, Jun Li, Jian Yang: Curriculum Temperature for
    Knowledge Distillation. AAAI 2023 (arXiv:2211.16231), with one T for all samples ("Global-T"), and, in the authors'
    code, T_0 = 1, R = 20 and theta = 1 at first, which is T = 15.6.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        theta: What is learned, a scalar.
        reversal: The strength lambda of the reversal, in [0, 1].
        lowest: T_0 > 0, which T stays above.
        width: R > 0; T stays below T_0 + R.

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
    log_teacher = functional.log_softmax(upcast(teacher) / temperature, dim=1)
    return mean_divergence(log_student, log_teacher, lowest + width) * temperature**2


class CTKDLoss(DistillationLoss):
    """Distillation at a learned temperature (Li et al. 2023, arXiv:2211.16231); see `ctkd_loss`.

    The optimizer that trains the student moves `theta` along. From easy to hard, the strength of the reversal follows a
    cosine over the first 10 of 240 epochs: ``LossSchedule("kd", "reversal", Cosine(0.0, 1.0, 10), unit="epoch")``.

    Args:
        lowest: Above 0; the temperature stays above it.
        width: Above 0; the temperature stays below `lowest` + `width`.
        reversal: The strength of the reversal, in [0, 1]. A `LossSchedule` may move it.

    Raises:
        UsageError: An argument is out of its range.
    """

    takes_rows = True

    def __init__(self, lowest: float = 1.0, width: float = 20.0, reversal: float = 1.0) -> None:
        super().__init__()
        self.lowest = check_temperature(lowest, "lowest")
        self.width = check_temperature(width, "width")
        self.reversal = check_fraction(reversal, "reversal")
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """T as it is now, to be logged; a tensor, which no schedule takes for a number that it may move."""
        return self.lowest + self.width * self.theta.detach().sigmoid()

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C); `target` is not looked at."""
        return ctkd_loss(student, teacher, self.theta, self.reversal, self.lowest, self.width)


def _reversed(values: Tensor, strength: float) -> Tensor:
    """The values, whose gradient is minus `strength` times what it would be."""
    return (1 + strength) * values.detach() - strength * values
