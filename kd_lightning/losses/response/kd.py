"""Knowledge distillation: the student imitates the teacher's softened distribution."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import mean_divergence


def kd_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, teacher_temperature: float | None = None
) -> Tensor:
    """Kullback-Leibler divergence of the softened distributions, averaged over the batch.

    L = T^2 / N sum_n KL(softmax(t_n / T_t) || softmax(s_n / T))

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS Deep Learning
    Workshop, 2014 (arXiv:1503.02531), where T_t is T. Both sides stay in log space and half precision is computed in
    float32, so that loss and gradients are finite wherever the logits are. The factor T^2 keeps the size of the
    gradient when T changes. T is the student's temperature: softening the teacher alone, as in snapshot distillation
    (Yang et al., CVPR 2019, arXiv:1812.00123), changes the soft targets p in the gradient T (q - p) / N, not its
    factor.

    A teacher's logit of minus infinity, such as that of a masked class or vocabulary entry, is a probability of 0, and
    the class contributes 0. Mask the student's logits with a finite number, such as -1e9: what it gives probability 0
    and the teacher does not is infinitely far.

    Other implementations differ: ``reduction="mean"`` divides by N * C instead of N, and some omit T^2, add it only
    together with a weight, or use the teacher's temperature, so their weights are not comparable.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.
        teacher_temperature: T_t > 0, the teacher's temperature; T if not given.

    Returns:
        A scalar, in nats times T^2.

    Raises:
        UsageError: The shapes differ, or a temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
        tensor(1.7751)
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    if teacher_temperature is None:
        teacher_temperature = temperature
    else:
        check_temperature(teacher_temperature, "teacher_temperature")
    log_student = functional.log_softmax(upcast(student) / temperature, dim=1)
    log_teacher = functional.log_softmax(upcast(teacher) / teacher_temperature, dim=1)
    return mean_divergence(log_student, log_teacher, temperature) * temperature**2


class KDLoss(DistillationLoss):
    """Hinton's distillation loss (2015, arXiv:1503.02531); see `kd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        teacher_temperature: T_t > 0, the teacher's temperature, which no schedule changes; T if not given.
    """

    takes_rows = True
    softmax_over_classes = True
    has_soft_targets = True

    def __init__(self, temperature: float = 4.0, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if teacher_temperature is not None:
            check_temperature(teacher_temperature, "teacher_temperature")
        self.teacher_temperature = teacher_temperature

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute T^2 KL of logits (N, C); `target` is unused."""
        return kd_loss(student, teacher, self.temperature, self.teacher_temperature)
