"""Generalised Jensen-Shannon divergence, between the forward and the reverse Kullback-Leibler divergence."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_logits, check_temperature, upcast
from kd_lightning.losses.common.divergence import mean_divergence


def jsd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Weighted divergences of teacher and student from their mixture, averaged over the batch.

    L = T^2 / N sum_n b KL(p_n || m_n) + (1 - b) KL(q_n || m_n), m = b p + (1 - b) q

    with p = softmax(t / T) and q = softmax(s / T); for b = 0 it is T^2 KL(p || q), which is `kd_loss`, and for b = 1 it
    is T^2 KL(q || p).

    Rishabh Agarwal, Nino Vieillard, Yongchao Zhou, Piotr Stanczyk, Sabela Ramos, Matthieu Geist, Olivier Bachem:
    On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes. ICLR 2024 (arXiv:2306.13649). As
    b goes to 0 or 1 the formula goes to 0, like b KL(p || q) or (1 - b) KL(q || p). At b = 0 and b = 1 the loss is
    defined without these factors, as by the authors, so it is discontinuous there. Near its minimum it is b (1 - b)
    times `kd_loss`: a quarter for b = 1/2.

    A teacher's logit of minus infinity is a probability of 0; for b = 1 the loss is then infinite.

    The factor T^2, as in `kd_loss`, keeps the size of the gradient when T changes. The paper has T = 1; implementations
    for language models divide the logits by T and omit the factor.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: T > 0; higher is softer.
        beta: The teacher's share b of the mixture, in [0, 1]. Towards 0 the student covers all classes to which the
            teacher gives probability, towards 1 it concentrates on the most likely ones.

    Raises:
        UsageError: The shapes differ, `beta` is not in [0, 1], or the temperature is not a finite number above 0.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])
        >>> [round(jsd_loss(student, teacher, beta=beta).item(), 4) for beta in (0.0, 0.5, 1.0)]
        [0.6031, 0.1804, 1.325]
    """
    check_logits(student, teacher)
    check_temperature(temperature)
    check_fraction(beta, "beta")
    log_student = functional.log_softmax(upcast(student) / temperature, dim=1)
    log_teacher = functional.log_softmax(upcast(teacher) / temperature, dim=1)
    if beta == 0:
        loss = mean_divergence(log_student, log_teacher, temperature)
    elif beta == 1:
        loss = mean_divergence(log_teacher, log_student, temperature)
    else:
        log_mixture = torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
        of_teacher, of_student = (mean_divergence(log_mixture, x, temperature) for x in (log_teacher, log_student))
        loss = beta * of_teacher + (1 - beta) * of_student
    return loss * temperature**2


class JSDLoss(DistillationLoss):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv:2306.13649); see `jsd_loss`.

    Args:
        temperature: T > 0; higher is softer. A `TemperatureSchedule` may change it.
        beta: The teacher's share of the mixture, from 0 (forward divergence) to 1 (reverse divergence).
    """

    takes_rows = True
    softmax_over_classes = True

    def __init__(self, temperature: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.beta = check_fraction(beta, "beta")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return jsd_loss(student, teacher, self.temperature, self.beta)
