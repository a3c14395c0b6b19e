"""Flow of the solution procedure: match the inner products between the channels of successive layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_maps, upcast
from kd_lightning.losses.common.connectors import layer_pairs
from kd_lightning.losses.common.vectors import products, squared_error


def fsp_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean squared error between the FSP matrices of successive layers, summed over pairs of layers.

    L = sum_l 1 / (N C C') sum_n ||G(s_l, s_l+1)_n - G(t_l, t_l+1)_n||_F^2, with G(f, g) = f^T g / P for features f of P
    positions and C channels, and g of P positions and C' channels

    Junho Yim, Donggyu Joo, Jihoon Bae, Junmo Kim: A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning. CVPR 2017. The larger of two layers is max-pooled to the size of the smaller, as
    in the paper, which sums over the matrix: its weight 1 is C C' here. The paper trains first by this loss alone, then
    by labels alone.

    Other implementations differ: RepDistiller pools by averaging (weight 50 for 30 epochs before the 240 with labels),
    torchdistill takes norms of the matrices' columns instead of squares.

    Args:
        student: Feature maps of at least two layers, shallow to deep: (N, C_l, H_l, W_l) each.
        teacher: The same number of maps, with the same widths: the loss has no connector.

    Raises:
        UsageError: There are fewer than two layers, or they are not maps of the same N images and the same widths.

    Example:
        >>> student, teacher = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
        >>> fsp_loss([student, student], [teacher, teacher])
        tensor(9.)
    """
    pairs = layer_pairs(student, teacher)
    if len(pairs) < 2:
        raise UsageError(f"FSP compares successive layers, and {len(pairs)} is given: list at least two on each side")
    for s, t in pairs:
        check_maps(s, t)
        if s.shape[1] != t.shape[1]:
            raise UsageError(
                f"student features {tuple(s.shape)} and teacher features {tuple(t.shape)} must have the same number of "
                "channels: FSP has no connector, so use a student as wide as its teacher, with fewer layers"
            )
    flows = [[_flow(*two) for two in pairwise(side)] for side in zip(*pairs, strict=True)]
    return torch.stack([squared_error(s, t) for s, t in zip(*flows, strict=True)]).sum()


class FSPLoss(DistillationLoss):
    """Flow of the solution procedure (Yim et al. 2017); see `fsp_loss`."""

    takes_maps = True

    def forward(self, student: list[Tensor], teacher: list[Tensor], target: Tensor | None = None) -> Tensor:
        """Compute the loss of at least two layers' feature maps on each side; `target` is unused."""
        return fsp_loss(student, teacher)


def _flow(one: Tensor, other: Tensor) -> Tensor:
    size = [min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])]
    one, other = (
        side if [*side.shape[2:]] == size else functional.adaptive_max_pool2d(side, size)
        for side in (upcast(one), upcast(other))
    )
    one, other = one.flatten(2), other.flatten(2)
    return products(one, other) / one.shape[2]  # (N, C, C')
