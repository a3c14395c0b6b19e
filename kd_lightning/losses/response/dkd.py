"""Decoupled distillation: separate weights for the labelled class and for the other classes among themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_not_negative, check_temperature, upcast
from kd_lightning.losses.common.classes import check_classes, labeled_mean, split_off
from kd_lightning.losses.common.divergence import divergences


def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Distillation of the labelled class against all others, and of the others among themselves, weighted separately.

    L = T^2 / N sum_n (a KL(b_n^t || b_n^s) + b KL(o_n^t || o_n^s))

    with b = (p_y, 1 - p_y) the softened probability of the labelled class y and of any other, and o the softened
    distribution over the classes other than y.

    Borui Zhao, Quan Cui, Renjie Song, Yiyu Qiu, Jiajun Liang: Decoupled Knowledge Distillation. CVPR 2022
    (arXiv:2203.08679). `kd_loss` is the case a = 1 and b = 1 - p_y of the teacher, where the second part is small if
    the teacher is confident; the paper removes that coupling. Its code has b = 8 by default, 2 or 6 in most
    configurations, .5 or 2 with T = 1 on ImageNet, and increases the term's weight linearly over 20 epochs, as a
    `TermWeightSchedule` can.

    Other implementations, the authors' included, take the logarithm of a sum of probabilities, which is -inf where the
    student is certain, and subtract 1000 from one logit, which does not remove it if it is that much above the others.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        target: Class indices (N,); samples of index -100, without a label, are left out of the mean.
        temperature: T > 0; higher is softer.
        alpha: Weight a of the labelled class, a >= 0.
        beta: Weight b of the other classes, b >= 0.

    Raises:
        UsageError: The shapes do not fit each other, or the temperature is not a finite number above 0.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[4.0, 2.0, 0.0]])
        >>> dkd_loss(student, teacher, torch.tensor([0]))
        tensor(4.8939)
    """
    check_logits(student, teacher)
    check_classes(student, target)
    check_temperature(temperature)
    # subtract the largest logit, which changes no probability, so that no large numbers are rounded at a low T
    student, teacher = (
        (z - z.detach().amax(dim=1, keepdim=True)) / temperature for z in map(upcast, (student, teacher))
    )
    (student, student_others), (teacher, teacher_others) = _split(student, target), _split(teacher, target)
    binary = labeled_mean(divergences(student, teacher, temperature), target)
    others = labeled_mean(divergences(student_others, teacher_others, temperature), target)
    return (alpha * binary + beta * others) * temperature**2


class DKDLoss(DistillationLoss):
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv:2203.08679); see `dkd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        alpha: Weight of the labelled class, at least 0.
        beta: Weight of the other classes, at least 0.

    Raises:
        UsageError: An argument is out of range.
    """

    takes_rows = True
    needs_target = True
    skips_unlabeled = True

    def __init__(self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.alpha = check_not_negative(alpha, "alpha")
        self.beta = check_not_negative(beta, "beta")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (N, C) and class indices (N,)."""
        return dkd_loss(student, teacher, target, self.temperature, self.alpha, self.beta)


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the labelled class and of all others, (N, 2), and of the others among themselves."""
    own, others = split_off(logits, target)
    total = others.logsumexp(dim=1, keepdim=True)
    odds = own - total
    return functional.logsigmoid(torch.cat([odds, -odds], dim=1)), others - total
