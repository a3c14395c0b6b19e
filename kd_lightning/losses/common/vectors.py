"""Arithmetic that losses share: squared errors, inner products, unit vectors, means over positions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.common.checks import upcast


def squared_error(student: Tensor, teacher: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Compute `torch.nn.functional.mse_loss` in the wider of the two types.

    Before torch 2.12, ``mse_loss`` of two different types has no gradient.

    Example:
        >>> squared_error(torch.zeros(2), torch.tensor([2.0, 4.0], dtype=torch.float64))
        tensor(10., dtype=torch.float64)
    """
    wider = torch.promote_types(student.dtype, teacher.dtype)
    return functional.mse_loss(student.to(wider), teacher.to(wider), reduction=reduction)


def products(one: Tensor, other: Tensor) -> Tensor:
    """Compute the inner products of all rows of (..., N, D) and (..., M, D), as (..., N, M), exempt from autocast.

    Example:
        >>> products(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[3., 4.]])
    """
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.mT


def unit(vectors: Tensor, shortest: float | Tensor = 1e-6, dim: int = -1) -> Tensor:
    """Scale vectors along a dimension to length 1; a vector up to the length `shortest` becomes 0, with gradient 0.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / lengths.masked_fill(lengths <= shortest, math.inf)


def pooled(features: Tensor) -> Tensor:
    """Average features (N, C, ...) over positions to (N, C), in at least single precision.

    Example:
        >>> pooled(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        tensor([[2., 5.]])
    """
    features = upcast(features)
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
