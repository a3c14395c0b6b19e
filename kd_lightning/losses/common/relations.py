"""Helpers of losses on relations: samples as rows, and distances between the rows of a batch."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.losses.common.checks import check_samples, upcast
from kd_lightning.losses.common.vectors import products


def as_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both sides to (N, D) and (N, D'), in at least single precision.

    Raises:
        UsageError: The sides are not features (N, ...) of the same N >= 2 samples.
    """
    check_samples(student, teacher)
    return upcast(student).flatten(1), upcast(teacher).flatten(1)


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distance of each pair of rows, (N, N), computed by inner products.

    Rounding errors are a few units in the last place of the largest squared length.

    Example:
        >>> import torch
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    # centred, so that products round less; distances do not depend on the mean, so it needs no gradient
    rows = rows - rows.detach().mean(dim=0)
    gram = products(rows, rows)
    squares = gram.diagonal()
    return (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * gram).clamp(min=0)
