"""Knowledge distillation: the student imitates the teacher's softened distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.losses.checks import check_logits, check_temperature, upcast


def kd_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, teacher_temperature: float | None = None
) -> Tensor:
    """Kullback-Leibler divergence of the softened distributions, averaged over the batch.

    L = T^2 / N sum_n KL(softmax(t_n / T_t) || softmax(s_n / T))

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS Deep Learning
    Workshop, 2014 (arXiv:1503.02531), where T_t is T. Both sides stay in log space and half precision is computed in
    float32, so that loss and gradients are finite wherever the logits are. The factor T^2 keeps the gradient's size
    when T changes. It is the student's: softening the teacher alone, as snapshot distillation does (Yang et al., CVPR
    2019, arXiv:1812.00123), changes the soft targets p in the gradient T (q - p) / N, and not what it is multiplied by.

    Other implementations differ: ``reduction="mean"`` divides by N * C instead of N, and some drop T^2, add it only
    with a weight, or take the teacher's, so that their weights mean something else.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.
        teacher_temperature: T_t > 0, to soften the teacher differently; T if not given.

    Returns:
        A scalar, in nats times T^2.

    Raises:
        ValueError: The shapes differ, or a temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
        tensor(1.7751)
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    check_temperature(teacher_temperature, "teacher_temperature")
    log_student = functional.log_softmax(upcast(student) / temperature, dim=1)
    log_teacher = functional.log_softmax(upcast(teacher) / teacher_temperature, dim=1)
    if temperature <= 20:
        divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    else:
        divergence = _divergence_of_near_equals(log_student, log_teacher)
    return divergence * temperature**2


class KDLoss(nn.Module):
    """Hinton's distillation loss (2015, arXiv:1503.02531); see `kd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may move it.
        teacher_temperature: T_t > 0, to soften the teacher differently, which no schedule moves; T if not given.
    """

    def __init__(self, temperature: float = 4.0, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if teacher_temperature is not None:
            check_temperature(teacher_temperature, "teacher_temperature")
        self.teacher_temperature = teacher_temperature

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """T^2 KL of logits (N, C); `target` is not looked at."""
        return kd_loss(student, teacher, self.temperature, self.teacher_temperature)


def _divergence_of_near_equals(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """The same divergence, summed as p (r - 1 + exp(-r)) with r = log p - log q, at twice the price.

    Far softened, p and q nearly agree: the summands p r have both signs and cancel to noise of 1e-7, which T^2 makes
    0.3 at T = 1000, more than the loss. These summands are of the order of r^2, and none is negative.
    """
    ratio = log_teacher - log_student
    soft_targets = log_teacher.exp()
    close = ratio.abs() < 1
    small = torch.where(close, ratio, 0)  # further off, exp(-ratio) may overflow, and its gradient would be NaN
    near = soft_targets * (small + torch.expm1(-small))
    far = soft_targets * (ratio - 1) + log_student.exp()
    return torch.where(close, near, far).sum(dim=1).mean()
