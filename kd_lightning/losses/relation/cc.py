"""Correlation congruence: match the batch's correlations in a Gaussian kernel."""

from __future__ import annotations

import math

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows
from kd_lightning.losses.common.vectors import products, squared_error, unit


def cc_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Squared distance between the batch's two kernel correlation matrices.

    L = 1 / N^2 ||K(s) - K(t)||_F^2 with K(x)_ij = exp(-2 gamma) sum_{p=0..order} (2 gamma)^p / p! cos(x_i, x_j)^p

    which is the Taylor expansion of the Gaussian kernel exp(-gamma ||x_i - x_j||^2) for features of length one.

    Baoyun Peng et al.: Correlation Congruence for Knowledge Distillation. ICCV 2019 (arXiv:1904.01802). The paper first
    embeds both sides in one width. Here there is no embedding: matrices over samples need no common width, and a
    trained embedding of the teacher could reduce the loss by discarding information.

    Other implementations differ: torchdistill does not normalise features, and takes the root of the squared distance
    over N^2. RepDistiller's loss of this name, with weight 0.02, has another formula: the products of neighbouring
    samples' absolute differences between student and teacher embeddings.

    Args:
        student: Features (N, ...), usually of the penultimate layer.
        teacher: Features (N, ...) of the same samples, of any width.
        gamma: Parameter of the Gaussian kernel, above 0.
        order: Highest power in the kernel's expansion, at least 1.

    Raises:
        UsageError: The sides are not the same N >= 2 samples, or `gamma` or `order` is out of range.

    Example:
        >>> import torch
        >>> cc_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(0.1266)
    """
    _check_kernel(gamma, order)
    student, teacher = as_rows(student, teacher)
    student, teacher = _series(student, gamma, order), _series(teacher, gamma, order)
    return squared_error(student, teacher) * math.exp(-4 * gamma)


class CCLoss(DistillationLoss):
    """Correlation congruence (Peng et al. 2019, arXiv:1904.01802); see `cc_loss`.

    Args:
        gamma: Parameter of the Gaussian kernel, above 0.
        order: Highest power in the kernel's expansion, at least 1.
    """

    compares_samples = True

    def __init__(self, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__()
        _check_kernel(gamma, order)
        self.gamma = gamma
        self.order = order

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is unused."""
        return cc_loss(student, teacher, self.gamma, self.order)


def _series(rows: Tensor, gamma: float, order: int) -> Tensor:
    """Compute the correlations without the factor exp(-2 gamma)."""
    rows = unit(rows)
    exponents = 2 * gamma * products(rows, rows)
    series = 1 + exponents / order
    for p in range(order - 1, 0, -1):
        series = 1 + series * exponents / p
    return series


def _check_kernel(gamma: float, order: int) -> None:
    if not 0 < gamma < math.inf or order < 1:
        raise UsageError(
            f"gamma={gamma} must be a finite number above 0, e.g. 0.4, and order={order} at least 1, e.g. 2"
        )
