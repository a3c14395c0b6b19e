"""Probabilistic knowledge transfer: match the distributions of similarities between samples."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows
from kd_lightning.losses.common.vectors import products, unit


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the student's and the teacher's conditional similarity probabilities.

    L = 1 / N^2 sum_ij t_ij log((t_ij + 1e-7) / (s_ij + 1e-7)) with x_ij = k(x_i, x_j) / sum_j k(x_i, x_j)

    and the kernel k(a, b) = (1 + cos(a, b)) / 2. A sample's similarity to itself is included.

    Nikolaos Passalis, Anastasios Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018
    (arXiv:1803.10837). The paper sums over pairs and normalises over the columns without the sample itself; the
    authors' code, and RepDistiller with weight 30000, take the mean over all N^2 pairs as here. The 1e-7 shifts the
    minimum of the loss from equality by about as much. Neither the length nor the width of a sample's features matters;
    where the length is zero, all its cosines are zero.

    Args:
        student: Features (N, ...), usually of the penultimate layer.
        teacher: Features (N, ...) of the same samples, of any width.

    Raises:
        UsageError: The sides are not the same N >= 2 samples.

    Example:
        >>> import torch
        >>> pkt_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(0.0294)
    """
    student, teacher = as_rows(student, teacher)
    q, p = _probabilities(student), _probabilities(teacher)
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


class PKTLoss(DistillationLoss):
    """Probabilistic knowledge transfer (Passalis, Tefas 2018, arXiv:1803.10837); see `pkt_loss`."""

    compares_samples = True

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is unused."""
        return pkt_loss(student, teacher)


def _probabilities(rows: Tensor) -> Tensor:
    rows = unit(rows)
    kernel = ((1 + products(rows, rows)) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)
