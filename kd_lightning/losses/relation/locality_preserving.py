"""Locality preservation: neighbours of the teacher's become neighbours of the student's."""

from __future__ import annotations

import math

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows, squared_distances


def locality_preserving_loss(student: Tensor, teacher: Tensor, neighbours: int = 5, width: float = 1.0) -> Tensor:
    """Squared distances of the student's samples, as far as they are neighbours of the teacher's.

    L = 1 / 2N sum_i sum_{j in neighbours of i} exp(-||t_i - t_j||^2 / width^2) ||s_i - s_j||^2

    The neighbours of i are the other samples of the batch that are nearest to it in the teacher.

    Hanting Chen, Yunhe Wang, Chang Xu, Chao Xu, Dacheng Tao: Learning Student Networks via Feature Embedding.
    TNNLS 2021 (arXiv:1812.06597). No layer brings one width to the other. Alone, the loss is least where all samples
    of the student are one: it needs a loss against the labels beside it. `width` is in the teacher's units: where
    neighbours are much farther apart than it, nothing is left of the loss.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...) of the same samples, of any width.
        neighbours: How many of each sample; all others in a batch that has no more.
        width: Distance in the teacher at which a neighbour counts for 1/e.

    Raises:
        UsageError: Not the same N >= 2 samples, or an argument is out of its range.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0], [1.0], [9.0]])
        >>> locality_preserving_loss(torch.tensor([[0.0], [2.0], [5.0]]), teacher, neighbours=1)
        tensor(0.4905)
    """
    _check_neighbourhood(neighbours, width)
    student, teacher = as_rows(student, teacher)
    apart = squared_distances(teacher)
    # in double precision, for which of equally near ones is nearest is a matter of rounding
    others = squared_distances(teacher.detach().double()).fill_diagonal_(math.inf)
    nearest = others.topk(min(neighbours, len(others) - 1), dim=1, largest=False).indices  # (N, neighbours)
    weights = (-apart.gather(1, nearest) / width**2).exp()
    return (weights * squared_distances(student).gather(1, nearest)).sum() / (2 * len(student))


class LocalityPreservingLoss(DistillationLoss):
    """Locality preservation (Chen et al. 2021, arXiv:1812.06597); see `locality_preserving_loss`.

    Args:
        neighbours: How many of each sample.
        width: Distance in the teacher at which a neighbour counts for 1/e.
    """

    compares_samples = True

    def __init__(self, neighbours: int = 5, width: float = 1.0) -> None:
        super().__init__()
        _check_neighbourhood(neighbours, width)
        self.neighbours = neighbours
        self.width = width

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of features (N, ...); `target` is not looked at."""
        return locality_preserving_loss(student, teacher, self.neighbours, self.width)


def _check_neighbourhood(neighbours: int, width: float) -> None:
    if neighbours < 1 or not 0 < width < math.inf:
        raise UsageError(f"neighbours={neighbours} must be at least 1 and width={width} a finite number above 0")
