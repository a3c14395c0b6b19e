"""What losses on feature maps share: one size for both sides, inner products, and vectors of length one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.checks import check_maps, upcast


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (N, C, H, W) in one precision, at least single; the larger is averaged down to the smaller one's size.

    Example:
        >>> [tuple(side.shape) for side in of_one_size(torch.zeros(2, 4, 6, 6), torch.zeros(2, 8, 5, 5))]
        [(2, 4, 5, 5), (2, 8, 5, 5)]
    """
    check_maps(student, teacher)
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    dtype = torch.promote_types(upcast(student).dtype, upcast(teacher).dtype)
    student, teacher = (
        side if side.shape[2:] == size else functional.adaptive_avg_pool2d(side, size)
        for side in (student.to(dtype), teacher.to(dtype))
    )
    return student, teacher


def products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all vectors in (N, C, P) and (N, C', P), as (N, C, C'); autocast does not make them rougher.

    Example:
        >>> products(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        tensor([[[3., 4.]]])
    """
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.transpose(1, 2)


def unit(vectors: Tensor, shortest: float = 1e-6) -> Tensor:
    """Vectors along the last dimension, divided by their length; what is too short for that is zero, as its gradient.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths <= shortest, math.inf)
