"""The divergence of two distributions, in a form that keeps its digits where they nearly agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def divergence(log_student: Tensor, log_teacher: Tensor, temperature: float) -> Tensor:
    """The mean over all pairs of rows of `divergences`."""
    if temperature <= 8:
        return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergences(log_student, log_teacher, temperature).mean()


def divergences(log_student: Tensor, log_teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each pair of rows (N,), from log-probabilities log q and log p (N, C) at a temperature.

    The summands p log(p / q) have both signs and, where p and q nearly agree, cancel to noise, which the square of a
    high temperature makes more than the loss. The noise is what rounding makes of sum q - sum p, whose true value is
    zero: above T = 8 this is added, from differences that keep their digits, and it needs no gradient.
    """
    rows = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    if temperature <= 8:
        return rows
    with torch.no_grad():
        ratio = log_student - log_teacher
        differences = torch.expm1(-ratio.abs()) * torch.maximum(log_student, log_teacher).exp()
        excess = torch.copysign(differences, ratio).sum(dim=1)
    return rows + excess
