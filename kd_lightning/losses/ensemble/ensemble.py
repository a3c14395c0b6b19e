"""Combine the logits of several teachers into one distribution for any loss on logits."""

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
"""``combine(logits, temperature, weights)``: combines the logits (N, K, C) of K teachers into logits (N, C)."""


def arithmetic_mean(logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Logits whose softened distribution is the mean of the teachers' softened distributions.

    z = T log sum_k w_k softmax(z_k / T)

    The mean is one of distributions at T, which averaged logits cannot express. The result is a logarithm, finite
    wherever the logits are.

    Args:
        logits: (N, K, C).
        temperature: T > 0, the temperature of the loss that compares the result.
        weights: Teachers' shares (K,), or samples' (N, K), that sum to 1.

    Returns:
        Log-probabilities times T, (N, C).

    Raises:
        UsageError: The temperature is not a finite number above 0, or there is not one weight for each teacher.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
        >>> arithmetic_mean(logits, 2.0, torch.ones(3) / 3).div(2.0).softmax(dim=1)
        tensor([[0.6269, 0.3731]])
    """
    check_temperature(temperature)
    softened = functional.softmax(upcast(logits) / temperature, dim=2)
    mixture = (_unsqueezed_weights(weights, logits) * softened).sum(dim=1)
    return temperature * mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()  # 0 stays finite


def geometric_mean(logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Logits whose softened distribution is, at every temperature, the normalised geometric mean of the teachers'.

    z = sum_k w_k z_k

    Args:
        logits: (N, K, C).
        temperature: Unused.
        weights: Teachers' shares (K,), or samples' (N, K), that sum to 1.

    Returns:
        Logits (N, C).

    Raises:
        UsageError: There is not one weight for each teacher.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
        >>> geometric_mean(logits, 2.0, torch.ones(3) / 3).div(2.0).softmax(dim=1)
        tensor([[0.6608, 0.3392]])
    """
    return (_unsqueezed_weights(weights, logits) * upcast(logits)).sum(dim=1)


class EnsembleLoss(DistillationLoss):
    """Apply a loss on logits to the combined distribution of several teachers.

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS Deep Learning
    Workshop, 2014 (arXiv:1503.02531), section 1: the arithmetic or the geometric mean of the teachers' distributions.

    The teachers are combined at the temperature at which the wrapped loss softens its teacher, also when a schedule
    changes it, and at 1 if the loss has no temperature. The arithmetic mean gives log-probabilities: for a loss that
    compares raw logits, such as `LogitMSELoss`, use the geometric mean.

    Args:
        loss: Compares logits (N, C) with logits (N, C).
        combine: Combines K teachers: `arithmetic_mean`, `geometric_mean`, or any function with their signature.
        weights: Each teacher's weight, above 0; only the ratios matter. All are equal if not given.

    Raises:
        UsageError: A weight is not a finite number above 0; at a call: the logits are not (N, C) and (N, K, C), or
            there is not one weight for each teacher.

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
        self.softmax_over_classes = loss_trait(loss, "softmax_over_classes")
        self.loss = loss
        self.combine = combine
        self.weights = check_weights(weights)
        self._cached_weights: Tensor | None = None
        self.needs_target = loss_trait(loss, "needs_target")
        self.compares_samples = loss_trait(loss, "compares_samples")

    @property
    def temperature(self) -> float:
        """The wrapped loss's temperature, which is logged and which a schedule may change."""
        return cast("float", self.loss.temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        cast("Any", self.loss).temperature = value

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C) and the combined logits of the teachers, given as (N, K, C)."""
        check_stacked_logits(student, teacher)
        temperature = getattr(self.loss, "teacher_temperature", None)
        if temperature is None:
            temperature = getattr(self.loss, "temperature", 1.0)
        logits = upcast(teacher)
        return self.loss(student, self.combine(logits, temperature, self._normalised_weights(logits)), target)

    def _normalised_weights(self, logits: Tensor) -> Tensor:
        """Return the normalised weights of the teachers, (K,), which are computed once for a type and device."""
        cached, teachers = self._cached_weights, logits.shape[1]
        kind = (logits.dtype, logits.device)
        if cached is None or (cached.dtype, cached.device) != kind or len(cached) != teachers:
            weights = logits.new_tensor([1.0] * teachers if self.weights is None else self.weights)
            cached = self._cached_weights = weights / weights.sum()
        return cached


def check_stacked_logits(student: Tensor, teacher: Tensor) -> None:
    """Check that these are logits (N, C) and those of K teachers (N, K, C), with N >= 1, K >= 1 and C >= 2."""
    one = torch.Size((*teacher.shape[:1], *teacher.shape[2:]))
    if teacher.dim() != 3 or 0 in teacher.shape or student.shape != one or student.shape[1] < 2:
        raise UsageError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must be (N, C) and, "
            "for K teachers, (N, K, C), with the same N >= 1 and C >= 2: use an Ensemble as the scheme's teacher, and "
            "the same num_classes for all networks"
        )


def check_weights(weights: list[float] | None) -> list[float] | None:
    """Return `weights` if they are None or finite numbers above 0, else raise a `UsageError`."""
    if weights is not None and not (weights and all(math.isfinite(weight) and weight > 0 for weight in weights)):
        raise UsageError(f"weights={weights} must be finite numbers above 0, one for each teacher")
    return weights


def _unsqueezed_weights(weights: Tensor, logits: Tensor) -> Tensor:
    if weights.shape not in (logits.shape[:2], logits.shape[1:2]):
        raise UsageError(
            f"weights {tuple(weights.shape)} are not one for each of the {logits.shape[1]} teachers, (K,) or (N, K), "
            f"of logits {tuple(logits.shape)}: give one weight for each"
        )
    return weights.unsqueeze(-1)
