"""Self-attention distillation: a layer learns the attention map of a deeper one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_maps, upcast


def sad_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between two layers' attention maps, averaged over the batch.

    L = 1 / N sum_n ||a(s_n) - a(t_n)||^2 with a(f) = softmax over positions of resize(sum_c f_c^2)

    Yuenan Hou, Zheng Ma, Chunxiao Liu, Chen Change Loy: Learning Lightweight Lane Detection CNNs by Self Attention
    Distillation. ICCV 2019 (arXiv:1908.00821). The squares are summed over channels, not averaged: the more channels,
    the sharper the map. The teacher's sums are resized bilinearly to the student's size before the softmax. Within
    a network, layer m is the student and layer m + 1 the teacher, which gets no gradient. The paper's weight is 0.1,
    and is applied in the last third of training, when the deeper layers have meaningful attention.

    Other implementations differ: some average the squares over channels, or the distance over positions, which makes it
    vanishingly small; the authors advise against the latter.

    Args:
        student: Feature maps (N, C, H, W).
        teacher: Feature maps (N, C', H', W').

    Raises:
        UsageError: They are not maps of the same N images, or the student's have a single position.

    Example:
        >>> student, teacher = torch.zeros(1, 8, 1, 2), torch.tensor([[[[0.0, 2.0]]]])
        >>> sad_loss(student, teacher)
        tensor(0.4647)
    """
    check_maps(student, teacher)
    height, width = student.shape[2:]
    if height * width == 1:
        raise UsageError(
            f"student features {tuple(student.shape)} have a single position, so their attention is constant: "
            "address a layer before pooling"
        )
    difference = _attention(student, height, width) - _attention(teacher, height, width)
    return difference.square().sum(dim=1).mean()


class SADLoss(DistillationLoss):
    """Self-attention distillation (Hou et al. 2019, arXiv:1908.00821); see `sad_loss`."""

    takes_maps = True

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W); `target` is unused."""
        return sad_loss(student, teacher)


def _attention(features: Tensor, height: int, width: int) -> Tensor:
    energy = upcast(features).square().sum(dim=1, keepdim=True)  # (N, 1, H, W)
    if energy.shape[2:] != torch.Size((height, width)):
        energy = functional.interpolate(energy, (height, width), mode="bilinear", align_corners=False)
    return energy.flatten(1).softmax(dim=1)
