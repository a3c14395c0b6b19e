"""Locality preservation: samples that are neighbours in the teacher's features become neighbours in the student's."""

from __future__ import annotations

import math

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows, squared_distances


def locality_preserving_loss(
    student: Tensor, teacher: Tensor, neighbours: int = 5, width: float | None = None
) -> Tensor:
    """Squared distances between the student's samples, weighted by their closeness in the teacher.

    L = 1 / 2N sum_i sum_{j in neighbours of i} exp(-||t_i - t_j||^2 / width^2) ||s_i - s_j||^2

    The neighbours of i are the nearest other samples of the batch by the teacher's features.

    Hanting Chen, Yunhe Wang, Chang Xu, Chao Xu, Dacheng Tao: Learning Student Networks via Feature Embedding.
    TNNLS 2021 (arXiv:1812.06597). The loss needs no connector between widths. Alone it is smallest where all samples of
    the student coincide, so it must be combined with a loss against labels.

    The paper gives width a number, in units of the teacher's features: where neighbours are much farther apart, as the
    units of a wide layer are, the loss vanishes. The default is ours: width^2 is the mean of ||t_i - t_j||^2 over the
    neighbours in the batch, so that a neighbour at that distance has the weight 1/e whatever the layer.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...) of the same samples, of any width.
        neighbours: Number of neighbours of each sample; in a smaller batch, all other samples.
        width: Distance in the teacher's features at which a neighbour's weight is 1/e; of the batch if not given.

    Raises:
        UsageError: The sides are not the same N >= 2 samples, or an argument is out of range.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0], [1.0], [9.0]])
        >>> locality_preserving_loss(torch.tensor([[0.0], [2.0], [5.0]]), teacher, neighbours=1)
        tensor(1.3559)
    """
    _check_neighbourhood(neighbours, width)
    student, teacher = as_rows(student, teacher)
    # in double precision, so that rounding does not decide between neighbours at nearly equal distances
    distances = squared_distances(teacher.double())
    others = distances.detach().clone().fill_diagonal_(math.inf)
    nearest = others.topk(min(neighbours, len(others) - 1), dim=1, largest=False).indices  # (N, neighbours)
    distances = distances.gather(1, nearest)
    square = distances.mean() if width is None else distances.new_tensor(width**2)
    weights = (-distances / square.masked_fill(square == 0, 1)).exp().to(teacher.dtype)
    return (weights * squared_distances(student).gather(1, nearest)).sum() / (2 * len(student))


class LocalityPreservingLoss(DistillationLoss):
    """Locality preservation (Chen et al. 2021, arXiv:1812.06597); see `locality_preserving_loss`.

    Args:
        neighbours: Number of neighbours of each sample.
        width: Distance in the teacher's features at which a neighbour's weight is 1/e; if not given, the root mean
            square of the neighbours' distances in each batch.
    """

    compares_samples = True

    def __init__(self, neighbours: int = 5, width: float | None = None) -> None:
        super().__init__()
        _check_neighbourhood(neighbours, width)
        self.neighbours = neighbours
        self.width = width

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is unused."""
        return locality_preserving_loss(student, teacher, self.neighbours, self.width)


def _check_neighbourhood(neighbours: int, width: float | None) -> None:
    if neighbours < 1 or not (width is None or 0 < width < math.inf):
        raise UsageError(f"neighbours={neighbours} must be at least 1 and width={width} a finite number above 0")
