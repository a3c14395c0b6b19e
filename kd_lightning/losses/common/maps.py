"""Helpers of losses on feature maps: pooling both sides to one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.losses.common.checks import check_maps, upcast


def pool_to_same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps (N, C, H, W) down to the size of the smaller, in at least single precision.

    Both results have the wider of the two types.

    Raises:
        UsageError: They are not maps of the same N images.

    Example:
        >>> [tuple(side.shape) for side in pool_to_same_size(torch.zeros(2, 4, 6, 6), torch.zeros(2, 8, 5, 5))]
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
