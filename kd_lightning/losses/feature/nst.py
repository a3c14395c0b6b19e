"""Neuron selectivity transfer: match the distributions of the channels' activation patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.connectors import Features, layer_pairs
from kd_lightning.losses.common.maps import pool_to_same_size
from kd_lightning.losses.common.vectors import products, unit


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two layers, averaged over the batch.

    L = 1/N sum_n [mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)], k(x, y) = (x^T y)^2

    s_i is the student's channel i of sample n as a vector over positions, scaled to length one; t_j is the teacher's.

    Zehao Huang, Naiyan Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017
    (arXiv:1707.01219), with the polynomial kernel of degree 2. The paper's factor is lambda / 2 with lambda = 50;
    RepDistiller's weight is 50. The loss equals the squared distance of second moments, ||mean_i s_i s_i^T - mean_j t_j
    t_j^T||_F^2; of the two forms, the one with the smaller matrices is computed, P x P for P positions or C x C' for
    channels. The larger map is first averaged down to the smaller one's size.

    Args:
        student: Feature maps (N, C, H, W).
        teacher: Feature maps (N, C', H', W').

    Raises:
        UsageError: They are not maps of the same N images.

    Example:
        >>> nst_loss(torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]]))
        tensor(0.5000)
    """
    student, teacher = pool_to_same_size(student, teacher)
    student, teacher = unit(student.flatten(2)), unit(teacher.flatten(2))  # (N, C, P)
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
        moments = [products(side.mT, side.mT) / side.shape[1] for side in (student, teacher)]  # (N, P, P)
        return (moments[0] - moments[1]).square().sum(dim=(1, 2)).mean()
    alike, unlike = _kernel(student, student) + _kernel(teacher, teacher), _kernel(student, teacher)
    return alike - 2 * unlike


class NSTLoss(DistillationLoss):
    """Neuron selectivity transfer (Huang, Wang 2017, arXiv:1707.01219), summed over layers; see `nst_loss`."""

    takes_maps = True

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W), or of a list on each side; `target` is unused."""
        return torch.stack([nst_loss(s, t) for s, t in layer_pairs(student, teacher)]).sum()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return products(one, other).square().mean()  # (N, C, C')
