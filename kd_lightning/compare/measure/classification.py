"""Figures of class logits: pure functions, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.common.divergence import mean_divergence

BINS = 15


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of rows whose largest logit is the target's, in [0, 1].

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        0.5
    """
    return (logits.argmax(dim=1) == target).double().mean().item()


def negative_log_likelihood(logits: Tensor, target: Tensor) -> float:
    """Mean cross-entropy at temperature 1, in nats.

    Args:
        logits: (N, C).
        target: Class indices (N,), or probabilities (N, C).

    Example:
        >>> round(negative_log_likelihood(torch.zeros(1, 10), torch.tensor([3])), 4)
        2.3026
    """
    labels = target.double() if target.is_floating_point() else target
    return functional.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, target: Tensor) -> float:
    """Expected calibration error (Guo et al., 2017, arXiv:1706.04599) of the top class, in [0, 1].

    sum_b n_b / N |accuracy_b - confidence_b| over 15 bins of equal width, (0, 1/15], ..., (14/15, 1].

    Args:
        logits: (N, C).
        target: Class indices (N,).

    Example:
        >>> round(calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])), 2)
        0.25
    """
    confidence, top = logits.double().softmax(dim=1).max(dim=1)
    surplus = (top == target).double() - confidence
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, torch.bucketize(confidence, edges), surplus)
    return sums.abs().sum().item() / len(target)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of rows on which both networks predict the same class, right or wrong, in [0, 1].

    Example:
        >>> agreement(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[9.0, 1.0], [0.0, 1.0]]))
        0.5
    """
    return accuracy(student, teacher.argmax(dim=1))


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student) at temperature 1, in nats.

    Example:
        >>> round(divergence(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])), 4)
        0.6031
    """
    log_student, log_teacher = (logits.double().log_softmax(dim=1) for logits in (student, teacher))
    return mean_divergence(log_student, log_teacher, temperature=1.0).item()
