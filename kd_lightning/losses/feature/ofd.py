"""Overhaul of feature distillation: match pre-activations above a margin, and ignore those negative on both sides."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, upcast
from kd_lightning.losses.common.connectors import Features, check_channel_lists, connect, layer_pairs, pairs_of_maps
from kd_lightning.losses.common.maps import pool_to_same_size


def ofd_loss(student: Features, teacher: Features) -> Tensor:
    """Partial squared distance between pre-activations, summed over features, averaged over the batch.

    L = sum_i 2^(i - n + 1) / N sum_d d(s_id, t_id) with d(s, t) = 0 where s <= t <= 0, and (s - t)^2 elsewhere

    Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi: A Comprehensive Overhaul of Feature
    Distillation. ICCV 2019 (arXiv:1904.01866). The teacher's features are max(F, m), m < 0, which
    `kd_lightning.networks.MarginTeacher` outputs. The authors' weights for this sum over features are 1e-3 on CIFAR-100
    and 1e-4 on ImageNet; the last of n layers has weight 1, each earlier one half of the next.

    Other implementations: mdistiller takes the margin as the target of all values below it, which is equivalent, and
    pools the teacher's maps before the margin, which is not.

    Args:
        student: The student's pre-activations (N, ...) after a connector, or a list of those of several layers.
        teacher: Pre-activations with a margin, of the same shapes.

    Raises:
        UsageError: The shapes or numbers of layers differ, or there are no features.

    Example:
        >>> ofd_loss(torch.tensor([[-3.0, 0.5, 1.0]]), torch.tensor([[-1.0, -1.0, 3.0]]))
        tensor(6.2500)
    """
    pairs = layer_pairs(student, teacher)
    return torch.stack([2.0 ** (i - len(pairs) + 1) * _partial(s, t) for i, (s, t) in enumerate(pairs)]).sum()


class OFDLoss(DistillationLoss):
    """The overhaul of feature distillation (Heo et al. 2019, arXiv:1904.01866) of several layers; see `ofd_loss`.

    For each layer a connector (1x1 convolution, BatchNorm) maps the student's pre-activations to the teacher's width.
    The larger map is first averaged down to the smaller one's size.

    Args:
        student_channels: Widths of the student's layers, shallow to deep.
        teacher_channels: Widths of the teacher's layers.

    Raises:
        UsageError: The two lists differ in length or are empty; at a call: the number of layers or their widths differ,
            or they are not maps of the same N images.
    """

    takes_maps = True

    compares_samples = True  # in the connectors' BatchNorm

    def __init__(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        super().__init__()
        check_channel_lists(student_channels, teacher_channels)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.connectors = nn.ModuleList(map(_connector, student_channels, teacher_channels))

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of pre-activations (N, C, H, W), a list on each side; `target` is unused."""
        pairs = pairs_of_maps(student, teacher, self.student_channels, self.teacher_channels)
        students: list[Tensor] = []
        teachers: list[Tensor] = []
        for i, (s, t) in enumerate(pairs):
            s, t = pool_to_same_size(s, t)
            students.append(connect(self.connectors[i], s))
            teachers.append(t)
        return ofd_loss(students, teachers)


def _partial(student: Tensor, teacher: Tensor) -> Tensor:
    check_same_shape(student, teacher)
    difference = upcast(student) - upcast(teacher)
    counts = (difference > 0) | (teacher > 0)
    return torch.where(counts, difference, 0.0).square().flatten(1).sum(dim=1).mean()


def _connector(student_channels: int, teacher_channels: int) -> nn.Module:
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))
