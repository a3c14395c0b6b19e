"""Attention-based feature distillation: an attention weights the student's layers for each layer of the teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.connectors import Features, check_channel_lists, connect, lists_of_maps
from kd_lightning.losses.common.vectors import unit


def afd_loss(student: list[Tensor], teacher: list[Tensor], attention: Tensor) -> Tensor:
    """Mean squared error of all pairs of layers, weighted by how much the teacher's attends to the student's.

    L = 1/N sum_n sum_t sum_s a_nts MSE(v_s, v_t) with v = vec(mean_c F^2) of length one, and sum_s a_nts = 1

    Mingi Ji, Byeongho Heo, Sungrae Park: Show, Attend and Distill: Knowledge Distillation via Attention-based Feature
    Matching. AAAI 2021 (arXiv:2102.02973). The authors' weight on CIFAR-100 is 200, beside 1 for labels and 0.9 for KD
    (T = 4).

    Args:
        student: For each of the teacher's T layers, the vectors of the student's S layers at its size, (N, S, P).
        teacher: The vectors of the teacher's layers, (N, P) each.
        attention: The weights a, (N, T, S).

    Raises:
        UsageError: Two shapes do not fit each other.

    Example:
        >>> student, teacher = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]), torch.tensor([[1.0, 0.0]])
        >>> afd_loss([student], [teacher], torch.tensor([[[0.25, 0.75]]]))
        tensor(0.3000)
    """
    errors: list[Tensor] = []
    for s, t in zip(student, teacher, strict=True):
        if s.dim() != 3 or t.shape != (s.shape[0], s.shape[2]) or not s.numel():
            raise UsageError(
                f"student features {tuple(s.shape)} and teacher features {tuple(t.shape)} must be vectors (N, S, P) "
                "and (N, P): pool the student's layers to the size of the teacher's layer"
            )
        errors.append((upcast(s) - upcast(t).unsqueeze(1)).square().mean(dim=2))
    found = torch.stack(errors, dim=1)  # (N, T, S)
    if attention.shape != found.shape:
        raise UsageError(
            f"attention {tuple(attention.shape)} does not fit errors {tuple(found.shape)}: it must be (N, T, S) of T "
            "teacher and S student layers"
        )
    return (upcast(attention) * found).sum(dim=(1, 2)).mean()


class AFDLoss(DistillationLoss):
    """Attention-based feature distillation (Ji et al. 2021, arXiv:2102.02973) of all pairs of layers; see `afd_loss`.

    a_nts = softmax over s of (q_nt^T W_t k_ns + p_t^T p_s) / sqrt(D)

    Queries q and keys k are computed from a layer's channel means by a linear layer and BatchNorm, followed by ReLU for
    keys. All pairs share the bilinear map W, and the position vectors p are learned. The squares of the student's maps
    are averaged down (or repeated up) to the size of each of the teacher's layers.

    Args:
        student_channels: Widths of the student's layers.
        teacher_channels: Widths of the teacher's layers; their number may differ.
        dimension: D, the width of queries and keys.

    Raises:
        UsageError: One of the lists is empty; at a call: the number of layers or their widths differ, or they are not
            maps of the same two or more images.
    """

    takes_maps = True

    compares_samples = True  # in BatchNorm

    def __init__(self, student_channels: list[int], teacher_channels: list[int], dimension: int = 128) -> None:
        super().__init__()
        check_channel_lists(student_channels, teacher_channels, paired=False)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.dimension = dimension
        self.queries = nn.ModuleList(_linear(width, dimension) for width in teacher_channels)
        self.keys = nn.ModuleList(_linear(width, dimension) for width in student_channels)
        self.bilinear = _linear(dimension, dimension * len(teacher_channels))
        self.bilinear[1].register_parameter("bias", None)  # equal for all s, so the softmax would cancel it
        self.teacher_positions = nn.Parameter(torch.empty(len(teacher_channels), dimension))
        self.student_positions = nn.Parameter(torch.empty(len(student_channels), dimension))
        nn.init.xavier_normal_(self.teacher_positions)
        nn.init.xavier_normal_(self.student_positions)

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W), a list on each side; `target` is unused."""
        students, teachers = lists_of_maps(student, teacher, self.student_channels, self.teacher_channels)
        squares = [_mean_square(s) for s in students]
        vectors = [
            unit(
                torch.stack(
                    [functional.adaptive_avg_pool2d(s, (t.shape[2], t.shape[3])).flatten(1) for s in squares], dim=1
                )
            )
            for t in teachers
        ]
        wanted = [unit(_mean_square(t).flatten(1)) for t in teachers]
        return afd_loss(vectors, wanted, self.attention(students, teachers))

    def attention(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compute each teacher layer's attention to the student's layers, (N, T, S); the sum over S is 1."""
        queries = torch.stack([connect(q, _channels(t)) for q, t in zip(self.queries, teacher, strict=True)], dim=1)
        keys = torch.stack([connect(k, _channels(s)).relu() for k, s in zip(self.keys, student, strict=True)], dim=1)
        keys = connect(self.bilinear, keys.flatten(0, 1)).view(len(keys), len(student), len(teacher), -1)
        with torch.autocast(keys.device.type, enabled=False):
            agreement = torch.einsum("nstd,ntd->nts", keys, queries)
            positions = self.teacher_positions @ self.student_positions.T
            return ((agreement + positions) / math.sqrt(self.dimension)).softmax(dim=2)


def _linear(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features))


def _channels(features: Tensor) -> Tensor:
    return upcast(features).mean(dim=(2, 3))


def _mean_square(features: Tensor) -> Tensor:
    return upcast(features).square().mean(dim=1, keepdim=True)
