"""Confidence-aware distillation from several teachers, weighted on each sample by their cross-entropies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast
from kd_lightning.losses.ensemble.ensemble import arithmetic_mean, check_stacked_logits
from kd_lightning.losses.response.kd import kd_loss


def ca_mkd_loss(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation from a mixture of teachers, weighted on each sample by their cross-entropies.

    L = T^2 / N sum_n KL(sum_k w_nk softmax(t_nk / T) || softmax(s_n / T))

    w_nk = (1 - exp(L_nk) / sum_j exp(L_nj)) / (K - 1), with the cross-entropy L_nk of teacher k on sample n at T = 1

    Hailin Zhang, Defang Chen, Can Wang: Confidence-Aware Multi-Teacher Knowledge Distillation. ICASSP 2022
    (arXiv:2201.00007). The divergence from the mixture and the mean of the divergences from each teacher differ by the
    teachers' disagreement, which does not depend on the student: the gradient is the same.

    The authors' code also divides by K: its weight w is w / K here.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, K, C) of K >= 2 teachers.
        target: Class indices (N,).
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The shapes do not fit each other, there is only one teacher, or the temperature is not a finite
            number above 0.

    Example:
        >>> teachers = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> ca_mkd_loss(torch.zeros(1, 2), teachers, torch.tensor([0]))
        tensor(1.6449)
    """
    check_stacked_logits(student, teacher)
    return kd_loss(student, arithmetic_mean(teacher, temperature, confidences(teacher, target)), temperature)


class CAMKDLoss(DistillationLoss):
    """Confidence-aware distillation from several teachers (Zhang et al. 2022, arXiv:2201.00007); see `ca_mkd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
    """

    takes_rows = True
    needs_target = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (N, C), those of K teachers (N, K, C) and class indices (N,)."""
        return ca_mkd_loss(student, teacher, target, self.temperature)


def confidences(logits: Tensor, target: Tensor) -> Tensor:
    """Compute weights (N, K) of teachers with logits (N, K, C): the higher a teacher's cross-entropy, the lower.

    Each row sums to 1. Where the label is -100 (an image without a label), all teachers have the same weight.

    Raises:
        UsageError: There is only one teacher, or the labels are not class indices (N,).

    Example:
        >>> confidences(torch.tensor([[[4.0, 0.0], [0.0, 4.0]]]), torch.tensor([0]))
        tensor([[0.9820, 0.0180]])
    """
    samples, teachers, _ = logits.shape
    if teachers < 2:
        raise UsageError(f"logits {tuple(logits.shape)} are of a single teacher, but confidence is relative: use two")
    if target.shape != (samples,) or target.dtype not in (torch.int64, torch.uint8):
        raise UsageError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: logits are "
            "(N, K, C), targets int64 class indices (N,)"
        )
    errors = functional.cross_entropy(
        upcast(logits).flatten(0, 1), target.long().repeat_interleave(teachers), reduction="none"
    )
    errors = errors.clamp(max=1e30)  # infinite for a teacher that gives the label probability 0
    return (1 - errors.view(samples, teachers).softmax(dim=1)) / (teachers - 1)
