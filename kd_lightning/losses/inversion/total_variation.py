"""Total variation: a measure of an image's roughness."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def total_variation_loss(student: Tensor) -> Tensor:
    """Norm of the differences between neighbouring pixels in four directions, averaged over the batch.

    L = 1/N sum_n sum_d ||x_n - shift_d(x_n)||_2, with d to the right, down, and along both diagonals

    Aravindh Mahendran, Andrea Vedaldi: Understanding Deep Image Representations by Inverting Them. CVPR 2015
    (arXiv:1412.0035), in the form of Yin et al.: Dreaming to Distill. CVPR 2020 (arXiv:1912.08795). Their code takes
    one norm of the whole batch, which is sqrt(N) times as large: its weight 2.5e-5 at a batch of 256 is 4e-4 here.

    Args:
        student: Images (N, C, H, W).

    Raises:
        UsageError: The input is not images (N, C, H, W) of at least 2 x 2.

    Example:
        >>> total_variation_loss(torch.tensor([[[[0.0, 3.0], [0.0, 3.0]]]]))
        tensor(10.2426)
    """
    if student.dim() != 4 or not student.numel() or min(student.shape[2:]) < 2:
        raise UsageError(f"images {tuple(student.shape)} must be (N, C, H, W) of at least 2 x 2: address the input")
    x = upcast(student)
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in differences]).sum(dim=0).mean()


class TotalVariationLoss(DistillationLoss):
    """Roughness of images (Mahendran, Vedaldi 2015, arXiv:1412.0035); see `total_variation_loss`.

    Its term addresses the input: ``student: null, teacher: input``.
    """

    takes_maps = True

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of images (N, C, H, W); the other arguments are unused."""
        return total_variation_loss(student)
