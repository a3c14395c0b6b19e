"""Semantic calibration: an attention weights the teacher's layers for each layer of the student."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, upcast
from kd_lightning.losses.common.connectors import Features, check_channel_lists, connect, lists_of_maps
from kd_lightning.losses.common.maps import pool_to_same_size
from kd_lightning.losses.common.vectors import products, unit


def semckd_loss(student: list[list[Tensor]], teacher: list[list[Tensor]], attention: Tensor) -> Tensor:
    """Mean squared error of all pairs of layers, weighted by how much the student's attends to the teacher's.

    L = 1 / (N S) sum_n sum_s sum_t a_nst MSE(p_st(F_s)_n, F_t,n) with sum_t a_nst = 1

    Defang Chen, Jian-Ping Mei, Yuan Zhang, Can Wang, Zhe Wang, Yan Feng, Chun Chen: Cross-Layer Distillation with
    Semantic Calibration. AAAI 2021 (arXiv:2012.03236). The authors' weight is 400, beside labels and KD (T = 4) at 1.

    Args:
        student: For each of the student's S layers, its projections to each of the teacher's T layers, (N, ...).
        teacher: The teacher's layers that they are compared with, of the same shapes.
        attention: The weights a, (N, S, T).

    Raises:
        UsageError: Two shapes differ, or the attention is not (N, S, T).

    Example:
        >>> student, teacher = torch.zeros(1, 2), [torch.tensor([[2.0, 2.0]]), torch.tensor([[4.0, 4.0]])]
        >>> semckd_loss([[student, student]], [teacher], torch.tensor([[[0.75, 0.25]]]))
        tensor(7.)
    """
    rows = [
        torch.stack([_error(s, t) for s, t in zip(*row, strict=True)], dim=1)
        for row in zip(student, teacher, strict=True)
    ]
    errors = torch.stack(rows, dim=1)  # (N, S, T)
    if attention.shape != errors.shape:
        raise UsageError(
            f"attention {tuple(attention.shape)} does not fit errors {tuple(errors.shape)}: it must be (N, S, T) of S "
            "student and T teacher layers"
        )
    return (upcast(attention) * errors).sum(dim=2).mean()


class SemCKDLoss(DistillationLoss):
    """Semantic calibration (Chen et al. 2021, arXiv:2012.03236) of all pairs of layers; see `semckd_loss`.

    A sample's row of a layer's similarity matrix F F^T (its inner products with the batch) passes through two linear
    layers with a ReLU between them and is normalised: this gives a query for each of the student's layers and a key for
    each of the teacher's. The attention is the softmax of their products over the teacher's layers. For each pair of
    layers the larger map is averaged down to the smaller one's size, and a projection (1x1, 3x3 and 1x1 convolution,
    the first two with BatchNorm and ReLU) maps the student's to the teacher's width.

    The rows are as long as the batch, so the loss is built for a batch size. Rows of a smaller batch are padded with
    zeros; the authors skip such batches.

    Args:
        student_channels: Widths of the student's layers.
        teacher_channels: Widths of the teacher's layers; their number may differ.
        batch_size: Largest number of images in a batch, of all processes together.
        channels: Width inside the projections; if not given, twice the teacher's, as published.

    Raises:
        UsageError: One of the lists is empty; at a call: the number of layers or their widths differ, they are not maps
            of the same N images, or N is above `batch_size`.
    """

    takes_maps = True
    compares_samples = True

    def __init__(
        self, student_channels: list[int], teacher_channels: list[int], batch_size: int, channels: int | None = None
    ) -> None:
        super().__init__()
        check_channel_lists(student_channels, teacher_channels, paired=False)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.batch_size = batch_size
        self.queries = nn.ModuleList(_embedding(batch_size) for _ in student_channels)
        self.keys = nn.ModuleList(_embedding(batch_size) for _ in teacher_channels)
        self.projections = nn.ModuleList(
            nn.ModuleList(_projection(s, channels or 2 * t, t) for t in teacher_channels) for s in student_channels
        )

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W), a list on each side; `target` is unused."""
        students, teachers = lists_of_maps(student, teacher, self.student_channels, self.teacher_channels)
        if len(students[0]) > self.batch_size:
            raise UsageError(
                f"student features {tuple(students[0].shape)} exceed batch_size={self.batch_size}: "
                "set it to the number of images in a batch of all processes together"
            )
        projected: list[list[Tensor]] = []
        targets: list[list[Tensor]] = []
        for s, projections in zip(students, self.projections, strict=True):
            pairs = [pool_to_same_size(s, t) for t in teachers]
            projected.append([connect(p, s) for p, (s, _) in zip(projections.children(), pairs, strict=True)])
            targets.append([t for _, t in pairs])
        return semckd_loss(projected, targets, self.attention(students, teachers))

    def attention(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compute each student layer's attention to the teacher's layers, (N, S, T); the sum over T is 1."""
        with torch.autocast(student[0].device.type, enabled=False):  # inner products overflow half precision
            queries = torch.stack([self._embed(q, s) for q, s in zip(self.queries, student, strict=True)], dim=1)
            keys = torch.stack([self._embed(k, t) for k, t in zip(self.keys, teacher, strict=True)], dim=2)
            return (queries @ keys).softmax(dim=2)

    def _embed(self, embedding: nn.Module, features: Tensor) -> Tensor:
        rows = upcast(features).flatten(1)
        similarities = functional.pad(products(rows, rows), (0, self.batch_size - len(rows)))
        return unit(connect(embedding, similarities))


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    check_same_shape(student, teacher)
    return (upcast(student) - upcast(teacher)).square().flatten(1).mean(dim=1)


def _embedding(batch_size: int) -> nn.Module:
    width = max(batch_size // 4, 1)
    return nn.Sequential(nn.Linear(batch_size, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _projection(student_channels: int, channels: int, teacher_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(student_channels, channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, teacher_channels, kernel_size=1, bias=False),
    )
