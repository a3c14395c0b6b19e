"""Attention transfer: the student learns the teacher's spatial attention maps."""

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
    Neural Networks via Attention Transfer. ICLR 2017 (arXiv:1612.03928). Q depends neither on the number of
    channels nor on the scale of the features. The larger map is first averaged down to the smaller one's size.

    The paper writes beta / 2 ||Q(s_n) - Q(t_n)||_2, a distance and not its square, with beta = 1000 / (N P). The
    formula here is that of the authors' code and of RepDistiller, with weight 1000 in both. torchdistill has both
    forms.

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
        """Compute the loss of feature maps (N, C, H, W), or of a list on each side; `target` is unused."""
        return torch.stack([attention_transfer_loss(s, t) for s, t in layer_pairs(student, teacher)]).sum()


def _attention(features: Tensor) -> Tensor:
    return unit(features.square().mean(dim=1).flatten(1), shortest=1e-12)  # (N, H W)
