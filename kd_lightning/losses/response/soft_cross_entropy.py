"""Cross-entropy against the teacher's softened distribution."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_temperature, upcast


def soft_cross_entropy_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Cross-entropy of the student's softened distribution against the teacher's, averaged over the batch.

    L = -T^2 / N sum_n sum_c softmax(t_n / T)_c log softmax(s_n / T)_c

    It is `kd_loss` plus T^2 times the entropy of the teacher's softened distribution. That is a constant: the student's
    gradient is the same, but the loss is not zero when the student equals the teacher.

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS Deep Learning
    Workshop, 2014 (arXiv:1503.02531), equation 2.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes differ, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> soft_cross_entropy_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), temperature=1.0)
        tensor(0.6931)
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    soft_targets = functional.softmax(upcast(teacher) / temperature, dim=1)
    return functional.cross_entropy(upcast(student) / temperature, soft_targets) * temperature**2


class SoftCrossEntropyLoss(DistillationLoss):
    """Cross-entropy against soft targets (Hinton 2015, arXiv:1503.02531); see `soft_cross_entropy_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
    """

    takes_rows = True
    softmax_over_classes = True
    has_soft_targets = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return soft_cross_entropy_loss(student, teacher, self.temperature)
