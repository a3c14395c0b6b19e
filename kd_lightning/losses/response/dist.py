"""DIST: match relations between classes and between samples by Pearson correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_not_negative, check_samples, check_temperature, upcast
from kd_lightning.losses.common.vectors import squared_error, unit

SHORTEST = 1e-18
"""Lengths up to this are 0: their squares leave single precision."""


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """Pearson distance of softened probabilities, over the classes of each sample and over the batch for each class.

    L = T^2 (b / N sum_n (1 - corr(p_n:, q_n:)) + g / C sum_c (1 - corr(p_:c, q_:c)))

    with p = softmax(t / T) and q = softmax(s / T).

    Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022
    (arXiv:2205.10536), with b = g = 1, T = 4 on CIFAR and T = 1 on ImageNet, and a weight of 2 beside the task loss.

    1 - corr is computed as half the squared distance of the unit vectors, which keeps its digits where the two agree.
    Every class counts alike, however small its probabilities, as in the paper's formula. A vector without variation, up
    to rounding (such as a class below 1e-18 in the whole batch), has no correlation: it contributes 0 if it is constant
    on both sides and 1/2 if on one, without a gradient. Other implementations add 1e-8 to the product of the norms, so
    that it contributes 1.

    Args:
        student: Logits (N, C), N >= 2.
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.
        beta: Weight b of the relations between a sample's classes, b >= 0.
        gamma: Weight g of the relations between a class's samples, g >= 0.

    Raises:
        UsageError: The shapes differ, there is only one sample, or the temperature is not a finite number above 0.

    Example:
        >>> student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> dist_loss(student, torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
        tensor(4.0000)
    """
    check_logits(student, teacher)
    check_samples(student, teacher)
    check_temperature(temperature)
    (student_rows, student_columns), (teacher_rows, teacher_columns) = (
        _unit_deviations(side, temperature) for side in (student, teacher)
    )
    of_samples = squared_error(student_rows, teacher_rows, reduction="sum") / (2 * student.shape[0])
    of_classes = squared_error(student_columns, teacher_columns, reduction="sum") / (2 * student.shape[1])
    return (beta * of_samples + gamma * of_classes) * temperature**2


class DISTLoss(DistillationLoss):
    """Correlations within samples and within classes (Huang et al. 2022, arXiv:2205.10536); see `dist_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        beta: Weight of the relations between a sample's classes, at least 0.
        gamma: Weight of the relations between a class's samples, at least 0.

    Raises:
        UsageError: An argument is out of range.
    """

    takes_rows = True
    softmax_over_classes = True
    compares_samples = True

    def __init__(self, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.beta = check_not_negative(beta, "beta")
        self.gamma = check_not_negative(gamma, "gamma")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return dist_loss(student, teacher, self.temperature, self.beta, self.gamma)


def _unit_deviations(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute each sample's and each class's deviations from its mean probability, scaled to length 1: (N, C) twice.

    Probabilities far below 1 / C keep their digits as they are, nearly equal ones as differences from 1 / C.
    """
    logits = upcast(logits)
    # subtracting the same value from all logits of a row has no effect, so the value needs no gradient
    scaled = (logits - logits.detach().amax(dim=1, keepdim=True)) / temperature
    less_one, likelihoods = torch.expm1(scaled), scaled.exp()
    mean = less_one.mean(dim=1, keepdim=True)
    rows = less_one - mean
    total = likelihoods.sum(dim=1, keepdim=True)
    rare = (likelihoods.detach() / total.detach()).amax(dim=0) < 0.5 / logits.shape[1]
    columns = torch.where(rare, likelihoods, rows) / total
    with torch.no_grad():  # a class varies by rounding alone up to a few units in the last place of the terms above
        terms = torch.where(rare, likelihoods, less_one + mean) / total
        rounding = 16 * torch.finfo(terms.dtype).eps * torch.linalg.vector_norm(terms, dim=0)
    columns = columns - columns.mean(dim=0)
    return unit(rows, SHORTEST, dim=1), unit(columns, rounding.clamp(min=SHORTEST), dim=0)
