"""What losses on relations share: samples as rows, and how the rows of a batch lie to each other."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.losses.common.checks import check_samples, upcast
from kd_lightning.losses.common.vectors import products


def as_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as (N, D) and (N, D') in at least single precision; a ValueError unless there are two samples."""
    check_samples(student, teacher)
    return upcast(student).flatten(1), upcast(teacher).flatten(1)


def squared_distances(rows: Tensor) -> Tensor:
    """Of each pair of rows, (N, N), by their products: precise to the last bits of the largest of them.

    Example:
        >>> import torch
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    # as near to zero as they can be, where their products round least; no distance knows of it, so it has no gradient
    rows = rows - rows.detach().mean(dim=0)
    gram = products(rows, rows)
    squares = gram.diagonal()
    return (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * gram).clamp(min=0)
