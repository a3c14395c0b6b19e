"""Kullback-Leibler divergence, in a form that keeps its digits where the two distributions nearly agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.common.classes import NO_CLASS

MAX_PLAIN_TEMPERATURE = 8.0
"""Up to this temperature KL is plain `torch.nn.functional.kl_div`; above it, rounding errors are corrected."""


def mean_divergence(log_student: Tensor, log_teacher: Tensor, temperature: float) -> Tensor:
    """Average `divergences` over all rows.

    Example:
        >>> log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
        >>> mean_divergence(log_q, log_p, temperature=1.0)
        tensor(0.1308)
    """
    if temperature <= MAX_PLAIN_TEMPERATURE:
        log_teacher = log_teacher.clamp(min=NO_CLASS)
        return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergences(log_student, log_teacher, temperature).mean()


def divergences(log_student: Tensor, log_teacher: Tensor, temperature: float) -> Tensor:
    """Compute KL(teacher || student) of each pair of rows, from log-probabilities at a temperature.

    KL = sum_c p_c log(p_c / q_c), where a class of p_c = 0 contributes 0

    The summands have both signs. Where p and q nearly agree they cancel to rounding noise, which a factor T^2 can make
    larger than the loss. The noise equals the rounding error of sum q - sum p, whose exact value is zero. Above
    `MAX_PLAIN_TEMPERATURE` that error is therefore added back, computed from differences that keep their digits; it
    needs no gradient.

    Args:
        log_student: log q, (N, C).
        log_teacher: log p, (N, C); minus infinity where p is 0.
        temperature: The temperature of both, which decides whether the correction is needed.

    Returns:
        One divergence a row, (N,), in nats.

    Example:
        >>> log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
        >>> divergences(log_q, log_p, temperature=20.0)
        tensor([0.1308])
    """
    log_teacher = log_teacher.clamp(min=NO_CLASS)  # 0 times a finite number
    rows = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    if temperature <= MAX_PLAIN_TEMPERATURE:
        return rows
    with torch.no_grad():
        ratio = log_student - log_teacher
        differences = torch.expm1(-ratio.abs()) * torch.maximum(log_student, log_teacher).exp()
        excess = torch.copysign(differences, ratio).sum(dim=1)
    return rows + excess
