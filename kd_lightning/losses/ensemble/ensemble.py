"""One loss, several teachers: their logits made those of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss, loss_trait
from kd_lightning.losses.common.checks import check_temperature, upcast

Combine = Callable[[Tensor, float, Tensor], Tensor]
"""``combine(logits, temperature, weights)``: K teachers' logits (N, K, C) made those of one, (N, C)."""


def arithmetic_mean(logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Logits whose softened distribution is the mean of the teachers' softened distributions.

    z = T log sum_k w_k softmax(z_k / T)

    The mean is of distributions at T and cannot be had from averaged logits. It stays in log space, so that it is
    finite wherever the logits are.

    Args:
        logits: (N, K, C).
        temperature: T > 0, that of the loss which the result is for.
        weights: Teachers' shares (K,), or samples' (N, K), that sum to 1.

    Returns:
        Log-probabilities times T, (N, C).

    Raises:
        UsageError: The temperature is not a finite number above 0, or the weights are not one a teacher.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
        >>> arithmetic_mean(logits, 2.0, torch.ones(3) / 3).div(2.0).softmax(dim=1)
        tensor([[0.6269, 0.3731]])
    """
    check_temperature(temperature)
    softened = functional.softmax(upcast(logits) / temperature, dim=2)
    mixture = (_one_a_teacher(weights, logits) * softened).sum(dim=1)
    return temperature * mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()  # 0 stays finite


def geometric_mean(logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Logits whose softened distribution is, at every temperature, the normalised geometric mean of the teachers'.

    z = sum_k w_k z_k

    Args:
        logits: (N, K, C).
        temperature: Not looked at.
        weights: Teachers' shares (K,), or samples' (N, K), that sum to 1.

    Returns:
        Logits (N, C).

    Raises:
        UsageError: The weights are not one a teacher.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
        >>> geometric_mean(logits, 2.0, torch.ones(3) / 3).div(2.0).softmax(dim=1)
        tensor([[0.6608, 0.3392]])
    """
    return (_one_a_teacher(weights, logits) * upcast(logits)).sum(dim=1)


class EnsembleLoss(DistillationLoss):
    """A loss on logits, for several teachers: compares with the one that they make together.

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS Deep Learning
    Workshop, 2014 (arXiv:1503.02531), section 1: the arithmetic or the geometric mean of their distributions.

    They are combined at the temperature at which the wrapped loss softens its teacher, whatever a schedule makes of it,
    and at 1 where it has none. An arithmetic mean is log-probabilities: a loss that compares logits as they are, such
    as `LogitMSELoss`, takes the geometric mean.

    Args:
        loss: Compares logits (N, C) with logits (N, C).
        combine: Makes one teacher of K: `arithmetic_mean`, `geometric_mean`, or any function that is called like them.
        weights: What each teacher counts, above 0; only their ratios matter. All the same if not given.

    Raises:
        UsageError: A weight is not a finite number above 0; at a call: the logits are not (N, C) and (N, K, C), or
            there is not one weight a teacher.

    Example:
        >>> from kd_lightning.losses import KDLoss
        >>> teachers = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> loss = EnsembleLoss(KDLoss(temperature=4.0), weights=[3.0, 1.0])
        >>> loss(torch.zeros(1, 2), teachers)
        tensor(0.4310)
    """

    takes_rows = True

    def __init__(self, loss: nn.Module, combine: Combine = arithmetic_mean, weights: list[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.combine = combine
        self.weights = check_weights(weights)
        self._shares: Tensor | None = None
        self.needs_target = loss_trait(loss, "needs_target")
        self.compares_samples = loss_trait(loss, "compares_samples")

    @property
    def temperature(self) -> float:
        """The wrapped loss's: read to be logged, set by a schedule."""
        return cast("float", self.loss.temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        cast("Any", self.loss).temperature = value

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C) and what the teachers' logits (N, K, C) make together."""
        check_stacked_logits(student, teacher)
        temperature = getattr(self.loss, "teacher_temperature", None)
        if temperature is None:
            temperature = getattr(self.loss, "temperature", 1.0)
        logits = upcast(teacher)
        return self.loss(student, self.combine(logits, temperature, self._shares_for(logits)), target)

    def _shares_for(self, logits: Tensor) -> Tensor:
        """One a teacher, (K,), made once."""
        kind, teachers = (logits.dtype, logits.device), logits.shape[1]
        if self._shares is None or (self._shares.dtype, self._shares.device) != kind or len(self._shares) != teachers:
            weights = logits.new_tensor([1.0] * teachers if self.weights is None else self.weights)
            self._shares = weights / weights.sum()
        return self._shares


def check_stacked_logits(student: Tensor, teacher: Tensor) -> None:
    """A ValueError with both shapes unless they are (N, C) and (N, K, C), N >= 1, K >= 1 and C >= 2."""
    one = torch.Size((*teacher.shape[:1], *teacher.shape[2:]))
    if teacher.dim() != 3 or 0 in teacher.shape or student.shape != one or student.shape[1] < 2:
        raise UsageError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must be (N, C) and those "
            "of K teachers (N, K, C), with the same N >= 1 and C >= 2: give the scheme an Ensemble as its teacher, and "
            "all networks the same num_classes"
        )


def check_weights(weights: list[float] | None) -> list[float] | None:
    """Returns `weights`; a ValueError unless there are none, or some, each a finite number above 0."""
    if weights is not None and not (weights and all(math.isfinite(weight) and weight > 0 for weight in weights)):
        raise UsageError(f"weights={weights} must be finite numbers above 0, one a teacher")
    return weights


def _one_a_teacher(weights: Tensor, logits: Tensor) -> Tensor:
    if weights.shape not in (logits.shape[:2], logits.shape[1:2]):
        raise UsageError(
            f"weights {tuple(weights.shape)} are not one for each of the {logits.shape[1]} teachers, (K,) or (N, K), "
            f"of logits {tuple(logits.shape)}"
        )
    return weights.unsqueeze(-1)
