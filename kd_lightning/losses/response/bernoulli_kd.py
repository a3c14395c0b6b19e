"""Distillation of labels that can hold together: the student imitates the teacher's probability of each label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_outputs, check_temperature, upcast


def bernoulli_kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of the softened probabilities of each label, averaged over batch and labels.

    L = T^2 / (N C) sum_nc KL(Bernoulli(sigmoid(t_nc / T)) || Bernoulli(sigmoid(s_nc / T)))

    Penghui Yang, Ming-Kun Xie, Chen-Chen Zong, Lei Feng, Gang Niu, Masashi Sugiyama, Sheng-Jun Huang: Multi-Label
    Knowledge Distillation. ICCV 2023 (arXiv:2308.06453), whose multi-label logits distillation has T = 1 and the sum
    over labels: its weight w is w C here. T and its factor T^2 are those of `kd_loss`. The mean over labels makes it
    comparable with `binary_task_loss`.

    For one logit z a sample it is `kd_loss` of the two logits (0, z). Half precision is computed in float32, and a
    label of which the teacher is certain (an infinite logit) counts as one of probability 0 or 1.

    Args:
        student: Logits (N, C) of C labels, or of one binary label (N, 1) or (N,).
        teacher: Of the student's shape.
        temperature: T > 0; higher is softer.

    Returns:
        A scalar, in nats times T^2.

    Raises:
        UsageError: The shapes differ, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> bernoulli_kd_loss(torch.zeros(1, 1), torch.tensor([[4.0]]), temperature=4.0)
        tensor(1.7751)
    """
    check_outputs(student, teacher, "logits")
    check_temperature(temperature)
    one = upcast(student) / temperature
    other = (upcast(teacher) / temperature).clamp(-1e30, 1e30)
    holds, fails = torch.sigmoid(other), torch.sigmoid(-other)
    # KL = log(1 + p (e^d - 1)) - p d keeps its digits where the logits differ by little, d = s - t
    near = (one - other).clamp(-1, 1)
    close = torch.log1p(holds * torch.expm1(near)) - holds * near
    # elsewhere a cross-entropy minus an entropy, both of summands >= 0
    apart = holds * (functional.softplus(-one) - functional.softplus(-other))
    apart = apart + fails * (functional.softplus(one) - functional.softplus(other))
    return torch.where((one - other).abs() < 1, close, apart).mean() * temperature**2


class BernoulliKDLoss(DistillationLoss):
    """Distillation of labels that can hold together (Yang et al. 2023, arXiv:2308.06453); see `bernoulli_kd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
    """

    has_soft_targets = True
    takes_rows = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute T^2 KL of each label's logits (N, C); `target` is unused."""
        return bernoulli_kd_loss(student, teacher, self.temperature)
