"""Relational knowledge distillation: match distances and angles between samples."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.distributed import all_reduce_sum, share_of_work
from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.relations import as_rows, squared_distances

AT_ONCE = 2**21
"""Angles that are in memory at a time, on each side."""


def rkd_loss(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Huber loss between both sides' distances of pairs and angles of triplets.

    L = distance / N^2 sum_ij h(d(s_i, s_j), d(t_i, t_j)) + angle / N^3 sum_ijk h(cos(s_ijk), cos(t_ijk))

    with d(x_i, x_j) = ||x_i - x_j|| / mean over pairs i != j, cos(x_ijk) the cosine of the angle at x_j between x_i and
    x_k, and h the Huber loss, which is linear beyond 1.

    Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho: Relational Knowledge Distillation. CVPR 2019 (arXiv:1904.05068). The
    paper gives angles twice the weight of distances; RepDistiller takes 25 and 50, and means over all pairs and
    triplets as here. The loss does not depend on the scale, position, rotation or width of the features. Samples that
    coincide have distance 0, cosine 0 and no gradient; for a batch of two samples the loss is 0. The angles are
    computed from the distances by the law of cosines, whose error in single precision is about 1e-7 times the ratio of
    the two sides of the angle.

    The N^3 angles take time, but not memory: from 129 samples on they are computed a few vertices j at a time (all at
    once where the gradient is differentiated again), and each of several processes computes a share.

    Other implementations differ: some exclude pairs that coincide from the mean distance.

    Args:
        student: Features (N, ...), usually of the penultimate layer.
        teacher: Features (N, ...) of the same samples, of any width.
        distance: Weight of the distances; 0 omits them.
        angle: Weight of the angles; 0 omits them.

    Raises:
        UsageError: The sides are not the same N >= 2 samples, or the weights are negative or both 0.

    Example:
        >>> corner, line = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.0, 0], [1, 0], [2, 0]])
        >>> rkd_loss(corner, line), rkd_loss(corner, 2 * corner)
        (tensor(8.2740), tensor(0.))
    """
    _check_weights(distance, angle)
    student, teacher = (_distances(rows) for rows in as_rows(student, teacher))
    loss = student.new_zeros(())
    if distance:
        loss = loss + distance * functional.smooth_l1_loss(_over_mean(student), _over_mean(teacher))
    if angle:
        loss = loss + angle * _angle_error(student, teacher)
    return loss


class RKDLoss(DistillationLoss):
    """Relational knowledge distillation (Park et al. 2019, arXiv:1904.05068); see `rkd_loss`.

    Args:
        distance: Weight of the distances; 0 omits them.
        angle: Weight of the angles; 0 omits them.
    """

    compares_samples = True

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        _check_weights(distance, angle)
        self.distance = distance
        self.angle = angle

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is unused."""
        return rkd_loss(student, teacher, self.distance, self.angle)


def _distances(rows: Tensor) -> Tensor:
    """Compute the distances of all pairs, (N, N), with 0 for those below the rounding error.

    Inner products in double precision are as accurate as differences in single precision, in a tenth of the time.
    """
    if rows.device.type == "mps":  # it has no double precision
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    squares = squared_distances(rows.double())
    coincide = squares <= 1e-14 * squares.detach().amax()
    return squares.masked_fill(coincide, 1).sqrt().masked_fill(coincide, 0).to(rows.dtype)


def _over_mean(lengths: Tensor) -> Tensor:
    mean = lengths.sum() / (len(lengths) * (len(lengths) - 1))
    return lengths / mean.masked_fill(mean == 0, 1)


def _angle_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean Huber loss between the cosines of all triplets, from the distances (N, N) of both sides."""
    n = len(student)
    vertices = max(1, AT_ONCE // n**2)
    if vertices >= n:
        return functional.smooth_l1_loss(_cosines(student), _cosines(teacher))

    return cast("Tensor", _AngleError.apply(student, teacher, vertices))


class _AngleError(torch.autograd.Function):
    """The same a few vertices at a time, with both gradients in closed form, so that no angle is kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, vertices: int) -> Tensor:
        """Return the error, and keep its derivative by the distances of each side that needs one."""
        n = len(student)
        total = student.new_zeros(())
        of_student, of_teacher = torch.zeros_like(student), torch.zeros_like(teacher)
        share, shares = share_of_work()
        for first in range(share * vertices, n, shares * vertices):
            at = slice(first, first + vertices)
            cosines, others = _cosines(student, at), _cosines(teacher, at)
            total += functional.smooth_l1_loss(cosines, others, reduction="sum")
            slopes = (cosines - others).clamp_(-1, 1)  # of the Huber loss by the student's cosines
            if ctx.needs_input_grad[0]:
                _add_gradient(of_student, student, at, slopes, cosines)
            if ctx.needs_input_grad[1]:
                _add_gradient(of_teacher, teacher, at, -slopes, others)
        for part in (total, of_student, of_teacher) if shares > 1 else ():
            all_reduce_sum(part)
        ctx.save_for_backward(student, teacher, of_student / n**3, of_teacher / n**3)
        return total / n**3

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Scale the derivatives; a gradient that is differentiated itself needs all angles."""
        student, teacher, *derivatives = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *(gradients[0] * derivative for derivative in derivatives), None
        needed = ctx.needs_input_grad[:2]
        error = functional.smooth_l1_loss(_cosines(student), _cosines(teacher))
        sides = [side for side, is_needed in zip((student, teacher), needed, strict=True) if is_needed]
        found = iter(torch.autograd.grad(error, sides, gradients[0], create_graph=True))
        return *(next(found) if is_needed else None for is_needed in needed), None


def _add_gradient(gradient: Tensor, lengths: Tensor, at: slice, slopes: Tensor, cosines: Tensor) -> None:
    """Add the derivative by the distances: cos_jik = (d_ji^2 + d_jk^2 - d_ik^2) / (2 d_ji d_jk), symmetric in i, k."""
    inverse = 1 / lengths[at].masked_fill(lengths[at] == 0, math.inf)
    gradient[at] -= 2 * inverse * (slopes * cosines).sum(dim=2)
    slopes = slopes * inverse.unsqueeze(2) * inverse.unsqueeze(1)
    gradient[at] += 2 * lengths[at] * slopes.sum(dim=2)
    gradient -= lengths * slopes.sum(dim=0)


def _cosines(lengths: Tensor, at: slice = slice(None)) -> Tensor:
    """Compute the cosines of the angles at samples j between i and k, (J, N, N), by the law of cosines."""
    squares = lengths.square()
    sides, inverse = squares[at], 1 / lengths[at].masked_fill(lengths[at] == 0, math.inf)
    twice_products = sides.unsqueeze(2) + sides.unsqueeze(1) - squares  # (j, i, k)
    return twice_products * (inverse / 2).unsqueeze(2) * inverse.unsqueeze(1)


def _check_weights(distance: float, angle: float) -> None:
    weights = (distance, angle)
    if not any(weights) or not all(0 <= weight < math.inf for weight in weights):
        raise UsageError(
            f"distance={distance} and angle={angle} must be finite, at least 0 and not both 0, e.g. 25.0 and 50.0"
        )
