"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.connectors import Features, layer_pairs
from kd_lightning.losses.common.maps import pool_to_same_size
from kd_lightning.losses.common.vectors import unit


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between two layers' attention maps, over batch and positions.

    L = 1 / (N P) sum_n ||Q(s_n) - Q(t_n)||^2 with Q(f) = q / ||q||_2 and q = mean_c f_c^2, one value a position

    Sergey Zagoruyko, Nikos Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer. ICLR 2017 (arXiv:1612.03928). Q looks neither at the number of channels nor
    at the scale of the features. The larger map is averaged down to the smaller one's size first.

    The paper writes beta / 2 ||Q(s_n) - Q(t_n)||_2, a distance and no square, with a beta of 1000 / (N P). This is the
    authors' code, and RepDistiller's, with the weight 1000 in both. torchdistill has the one and the other.

    Args:
        student: Feature maps (N, C, H, W).
        teacher: Feature maps (N, C', H', W').

    Raises:
        UsageError: They are not maps of the same N images.

    Example:
        >>> attention_transfer_loss(torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]], [[0.0, 1.0]]]]))
        tensor(1.)
    """
    student, teacher = pool_to_same_size(student, teacher)
    return (_attention(student) - _attention(teacher)).square().mean()


class AttentionTransferLoss(DistillationLoss):
    """Attention transfer (Zagoruyko, Komodakis 2017, arXiv:1612.03928), summed over layers.

    See `attention_transfer_loss`.
    """

    takes_maps = True

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """The loss of feature maps (N, C, H, W), or of a list on each side; `target` is not looked at."""
        return torch.stack([attention_transfer_loss(s, t) for s, t in layer_pairs(student, teacher)]).sum()


def _attention(features: Tensor) -> Tensor:
    return unit(features.square().mean(dim=1).flatten(1), shortest=1e-12)  # (N, H W)
