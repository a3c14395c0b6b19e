"""Activation boundary distillation: the student's neurons learn to be active where the teacher's are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, upcast
from kd_lightning.losses.common.connectors import Features, check_channel_lists, connect, pairs_of_maps


def ab_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge loss between pre-activations and the sign of the teacher's, summed over features.

    L = 1/N sum_n sum_d max(0, margin - sign(t_nd) s_nd)^2 with a sign of -1 at zero

    Byeongho Heo, Minsik Lee, Sangdoo Yun, Jin Young Choi: Knowledge Transfer via Distillation of Activation Boundaries
    Formed by Hidden Neurons. AAAI 2019 (arXiv:1811.03233). The magnitude of the teacher's activation has no effect. In
    the paper the student's early layers are first trained by this loss alone, then the whole network by labels alone.

    Other implementations differ: RepDistiller multiplies by 3 / 1000 (its weight 1 is 0.003 here), others average over
    features.

    Args:
        student: The student's pre-activations (N, ...), after a connector.
        teacher: Pre-activations of the same shape.
        margin: Distance from zero at which the loss vanishes; > 0.

    Raises:
        UsageError: The shapes differ, there are no features, or the margin is not a finite number above 0.

    Example:
        >>> ab_loss(torch.tensor([[0.5, 0.5, 2.0]]), torch.tensor([[3.0, -3.0, 0.1]]))
        tensor(2.5000)
    """
    _check_margin(margin)
    check_same_shape(student, teacher)
    active = torch.where(teacher > 0, 1.0, -1.0)
    return (margin - active * upcast(student)).clamp(min=0).square().flatten(1).sum(dim=1).mean()


class ABLoss(DistillationLoss):
    """Activation boundaries (Heo et al. 2019, arXiv:1811.03233) of several layers; see `ab_loss`.

    Layer i of n, counted from 0, has the weight 2^(i - n + 1): the last one 1, each earlier one half of the next. For
    each layer a connector (1x1 convolution, BatchNorm) maps the student's pre-activations to the teacher's width.

    Args:
        student_channels: Widths of the student's layers, shallow to deep.
        teacher_channels: Widths of the teacher's layers.
        margin: Distance from zero at which the loss vanishes; > 0.

    Raises:
        UsageError: The two lists differ in length or are empty, or the margin is not a finite number above 0; at a
            call: the number of layers, their widths or sizes differ.
    """

    takes_maps = True

    compares_samples = True  # in the connectors' BatchNorm

    def __init__(self, student_channels: list[int], teacher_channels: list[int], margin: float = 1.0) -> None:
        super().__init__()
        check_channel_lists(student_channels, teacher_channels)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.margin = _check_margin(margin)
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s, t, kernel_size=1, bias=False), nn.BatchNorm2d(t))
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of pre-activations (N, C, H, W), a list on each side; `target` is unused."""
        pairs = pairs_of_maps(student, teacher, self.student_channels, self.teacher_channels)
        losses = [ab_loss(connect(to, s), t, self.margin) for to, (s, t) in zip(self.connectors, pairs, strict=True)]
        return torch.stack([2.0 ** (i - len(pairs) + 1) * loss for i, loss in enumerate(losses)]).sum()


def _check_margin(margin: float) -> float:
    if not (math.isfinite(margin) and margin > 0):
        raise UsageError(f"margin={margin} must be a finite number above 0, e.g. 1.0")
    return margin
