"""Relational knowledge distillation: the student's samples lie to each other as the teacher's do."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows, squared_distances


def rkd_loss(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Distances of pairs and angles of triplets, each against the teacher's.

    L = distance / N^2 sum_ij h(d(s_i, s_j), d(t_i, t_j)) + angle / N^3 sum_ijk h(cos(s_ijk), cos(t_ijk))

    with d(x_i, x_j) = ||x_i - x_j|| / mean over unlike pairs, cos(x_ijk) that of the angle at x_j towards x_i and x_k,
    and h the Huber loss that turns linear at 1.

    Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho: Relational Knowledge Distillation. CVPR 2019 (arXiv:1904.05068). It
    gives angles twice the weight of distances, RepDistiller takes 25 and 50 and means over all pairs and triplets as
    here. Neither scale, place nor rotation of the features matters, nor their width. Samples that coincide have
    distance 0, cosine 0 and no gradient; two samples alone have nothing to tell, and their loss is 0. The angles take
    memory for N^3 numbers a side; they come from the distances by the law of cosines, which in single precision knows
    them to about 1e-7 times the ratio of their two sides.

    Other implementations differ: some leave pairs that coincide out of the mean distance.

    Args:
        student: Features (N, ...), usually of the penultimate layer.
        teacher: Features (N, ...) of the same samples, of any width.
        distance: Weight of the distances; 0 leaves them out.
        angle: Weight of the angles; 0 leaves them out.

    Raises:
        UsageError: Not the same N >= 2 samples, or a weight is no weight.

    Example:
        >>> corner, line = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.0, 0], [1, 0], [2, 0]])
        >>> rkd_loss(corner, line), rkd_loss(corner, 2 * corner)
        (tensor(8.2740), tensor(0.))
    """
    _check_weights(distance, angle)
    student, teacher = (_lengths(rows) for rows in as_rows(student, teacher))
    loss = student.new_zeros(())
    if distance:
        loss = loss + distance * functional.smooth_l1_loss(_of_mean(student), _of_mean(teacher))
    if angle:
        loss = loss + angle * functional.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return loss


class RKDLoss(DistillationLoss):
    """Relational knowledge distillation (Park et al. 2019, arXiv:1904.05068); see `rkd_loss`.

    Args:
        distance: Weight of the distances; 0 leaves them out.
        angle: Weight of the angles; 0 leaves them out.
    """

    compares_samples = True

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        _check_weights(distance, angle)
        self.distance = distance
        self.angle = angle

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of features (N, ...); `target` is not looked at."""
        return rkd_loss(student, teacher, self.distance, self.angle)


def _lengths(rows: Tensor) -> Tensor:
    """Distances of all pairs (N, N), of which those that rounding hides are 0.

    By products in double precision, which know them as well as differences in single precision do, in a tenth of the
    time.
    """
    if rows.device.type == "mps":  # which has no double precision
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    squares = squared_distances(rows.double())
    coincide = squares <= 1e-14 * squares.detach().amax()
    return squares.masked_fill(coincide, 1).sqrt().masked_fill(coincide, 0).to(rows.dtype)


def _of_mean(lengths: Tensor) -> Tensor:
    mean = lengths.sum() / (len(lengths) * (len(lengths) - 1))
    return lengths / mean.masked_fill(mean == 0, 1)


def _cosines(lengths: Tensor) -> Tensor:
    """At sample j, between the directions to i and to k, (N, N, N): the law of cosines."""
    squares, inverse = lengths.square(), 1 / lengths.masked_fill(lengths == 0, math.inf)
    less_opposite = squares.unsqueeze(2) + squares.unsqueeze(1) - squares  # (j, i, k)
    return less_opposite * (inverse / 2).unsqueeze(2) * inverse.unsqueeze(1)


def _check_weights(distance: float, angle: float) -> None:
    weights = (distance, angle)
    if not any(weights) or not all(0 <= weight < math.inf for weight in weights):
        raise UsageError(f"distance={distance} and angle={angle} must be finite, not negative and not both 0")
