"""Variational information distillation: predict the teacher's features by a Gaussian with learned variances."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_map_widths, check_same_shape, upcast
from kd_lightning.losses.common.connectors import connect
from kd_lightning.losses.common.maps import pool_to_same_size

_SMALLEST = 1e-5  # variance


def vid_loss(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's features under a Gaussian, without its constant, averaged over values.

    L = 1 / (N C P) sum_ncp [(t_ncp - s_ncp)^2 / v_c + log v_c] / 2

    Sungsoo Ahn, Shell Xu Hu, Andreas Damianou, Neil D. Lawrence, Zhenwen Dai: Variational Information Distillation for
    Knowledge Transfer. CVPR 2019 (arXiv:1904.05835). The loss bounds the mutual information of the two layers. The mean
    over features is that of the authors' code and all others, with weight 1. The loss can be negative.

    Args:
        student: The means that a regressor predicts from the student's features, (N, C, H, W).
        teacher: Feature maps of the same shape.
        variance: The variance of each channel, (C,), above 0.

    Raises:
        UsageError: The shapes do not fit each other.

    Example:
        >>> vid_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([4.0]))
        tensor(0.9431)
    """
    check_same_shape(student, teacher)
    if variance.shape != student.shape[1:2]:
        raise UsageError(
            f"variance {tuple(variance.shape)} and student features {tuple(student.shape)} do not fit: give one "
            "variance for each channel"
        )
    variance = upcast(variance).view(-1, *[1] * (student.dim() - 2))
    return ((upcast(teacher) - upcast(student)).square() / variance + variance.log()).mean() / 2


class VIDLoss(DistillationLoss):
    """Variational information distillation (Ahn et al. 2019, arXiv:1904.05835) of one layer; see `vid_loss`.

    The means come from three 1x1 convolutions with ReLUs between them, with the teacher's width; the variances
    softplus(rho_c) + 1e-5 are learned and do not depend on the image. The larger map is first averaged down to the
    smaller one's size. For several layers, use one term for each.

    Args:
        student_channels: Width of the student's layer.
        teacher_channels: Width of the teacher's layer.
        initial_variance: Initial variance of every channel; above 1e-5.

    Raises:
        UsageError: The initial variance is not a finite number above 1e-5; at a call: the features are not maps of
            the same N images, or have other widths.
    """

    takes_maps = True

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float = 5.0) -> None:
        super().__init__()
        if not (math.isfinite(initial_variance) and initial_variance > _SMALLEST):
            raise UsageError(f"initial_variance={initial_variance} must be a finite number above {_SMALLEST}, e.g. 5.0")
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1, bias=False),
        )
        excess = initial_variance - _SMALLEST
        self.rho = nn.Parameter(torch.full((teacher_channels,), excess + math.log(-math.expm1(-excess))))

    @property
    def variance(self) -> Tensor:
        """The variance of each channel, (C,)."""
        return functional.softplus(self.rho) + _SMALLEST

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W); `target` is unused."""
        check_map_widths(student, teacher, self.student_channels, self.teacher_channels)
        student, teacher = pool_to_same_size(student, teacher)
        return vid_loss(connect(self.regressor, student), teacher, self.variance)
