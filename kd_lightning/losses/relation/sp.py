"""Similarity-preserving distillation: match the similarities between samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.connectors import Features, layer_pairs
from kd_lightning.losses.common.relations import as_rows
from kd_lightning.losses.common.vectors import products, unit


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the batch's two similarity matrices.

    L = 1 / N^2 ||G(s) - G(t)||_F^2 with the rows of G(x) = X X^T divided by their length, X one row a sample

    Frederick Tung, Greg Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019 (arXiv:1907.09682); weight 3000.
    Similarities are inner products and not cosines, so the length of a sample's features matters; the common scale of
    all features and their width do not. A sample whose features are zero has similarity 0 to all, and no gradient.

    Other implementations differ: torchdistill divides each row by the sum of its absolute values.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...) of the same samples, of any width.

    Raises:
        UsageError: The sides are not the same N >= 2 samples.

    Example:
        >>> sp_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(0.2929)
    """
    student, teacher = as_rows(student, teacher)
    return (_similarities(student) - _similarities(teacher)).square().mean()


class SPLoss(DistillationLoss):
    """Similarity-preserving distillation (Tung, Mori 2019, arXiv:1907.09682), summed over layers; see `sp_loss`."""

    compares_samples = True

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...), or of a list on each side; `target` is unused."""
        return torch.stack([sp_loss(s, t) for s, t in layer_pairs(student, teacher)]).sum()


def _similarities(rows: Tensor) -> Tensor:
    return unit(products(rows, rows), shortest=1e-12)
