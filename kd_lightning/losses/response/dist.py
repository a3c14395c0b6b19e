"""DIST: match relations between classes and between samples by Pearson correlation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, check_not_negative, check_samples, check_temperature, upcast
from kd_lightning.losses.common.vectors import squared_error


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """Pearson distance of softened probabilities, over the classes of each sample and over the batch for each class.

    L = T^2 (b / N sum_n (1 - corr(p_n:, q_n:)) + g / C sum_c (1 - corr(p_:c, q_:c)))

    with p = softmax(t / T) and q = softmax(s / T).

    Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022
    (arXiv:2205.10536), with b = g = 1, T = 4 on CIFAR and T = 1 on ImageNet, and a weight of 2 beside the task loss.

    1 - corr is computed as half the squared distance of the unit vectors, which keeps its digits where the two agree. A
    norm below 1e-3 is replaced by 1e-3: a vector that does not vary, such as a class absent from the batch, contributes
    0 if it is constant on both sides and 1/2 if on one. Other implementations add 1e-8 to the product of the norms, so
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
    student, teacher = _centred_softmax(student, temperature), _centred_softmax(teacher, temperature)
    of_classes = _distance(student, teacher, dim=1) / len(student)
    of_samples = _distance(student - student.mean(dim=0), teacher - teacher.mean(dim=0), dim=0) / student.shape[1]
    return (beta * of_classes + gamma * of_samples) * temperature**2


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


def _centred_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Compute softmax(z / T) - 1 / C, with full precision where the probabilities are nearly equal."""
    logits = upcast(logits)
    # subtracting the same value from all logits of a row has no effect, so the value needs no gradient
    less_one = torch.expm1((logits - logits.detach().amax(dim=1, keepdim=True)) / temperature)
    mean = less_one.mean(dim=1, keepdim=True)
    return (less_one - mean) / (logits.shape[1] * (1 + mean))


def _distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Sum 1 - correlation, which for vectors of mean 0 and length 1 is half their squared distance."""
    student, teacher = (functional.normalize(x, dim=dim, eps=1e-3) for x in (student, teacher))
    return squared_error(student, teacher, reduction="sum") / 2
