"""Arithmetic that losses share: squared errors, inner products, vectors of length one, means over positions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.common.checks import upcast


def squared_error(student: Tensor, teacher: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Compute `torch.nn.functional.mse_loss` in the wider of the two types; torch below 2.12 has no gradient of two.

    Example:
        >>> squared_error(torch.zeros(2), torch.tensor([2.0, 4.0], dtype=torch.float64))
        tensor(10., dtype=torch.float64)
    """
    wider = torch.promote_types(student.dtype, teacher.dtype)
    return functional.mse_loss(student.to(wider), teacher.to(wider), reduction=reduction)


def products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all rows in (..., N, D) and (..., M, D), as (..., N, M); autocast does not make them rougher.

    Example:
        >>> products(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[3., 4.]])
    """
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.mT


def unit(vectors: Tensor, shortest: float = 1e-6) -> Tensor:
    """Vectors along the last dimension, divided by their length; one too short for that becomes 0, as its gradient.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths <= shortest, math.inf)


def pooled(features: Tensor) -> Tensor:
    """Features (N, C, ...) averaged over their positions, (N, C), in at least single precision.

    Example:
        >>> pooled(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        tensor([[2., 5.]])
    """
    features = upcast(features)
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
