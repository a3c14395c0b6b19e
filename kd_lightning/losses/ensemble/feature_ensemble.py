"""Combine one loss on features for each of several teachers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss, loss_trait
from kd_lightning.losses.ensemble.ensemble import check_weights


class FeatureEnsembleLoss(DistillationLoss):
    """Weighted mean of one loss for each teacher, each with a separate connector, so that teachers' widths may differ.

    L = sum_k w_k L_k(s_k, t_k, y) / sum_k w_k

    In a term the teacher's address lists one layer for each teacher, such as ``teacher: [members.0.conv.3,
    members.1.layer2]``; the student's is a single layer, which is compared with all, or a list with one for each.

    Args:
        losses: One for each teacher, in their order.
        weights: Each teacher's weight, above 0; only the ratios matter. All are equal if not given.

    Raises:
        UsageError: There are no losses, or not one weight, a finite number above 0, for each; at a call: there is not
            one layer for each loss.

    Example:
        >>> from kd_lightning.losses import LogitMSELoss
        >>> loss = FeatureEnsembleLoss([LogitMSELoss(), LogitMSELoss()], weights=[3.0, 1.0])
        >>> loss(torch.zeros(1, 2), [torch.ones(1, 2), torch.full((1, 2), 3.0)])
        tensor(3.)
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        if not losses:
            raise UsageError("losses is empty: give one for each teacher")
        self.losses = nn.ModuleList(losses)
        self.weights = check_weights(weights) or [1.0] * len(losses)
        if len(self.weights) != len(losses):
            raise UsageError(f"weights={weights} are not one for each of the {len(losses)} losses: give {len(losses)}")
        self.needs_target = any(loss_trait(loss, "needs_target") for loss in losses)
        self.compares_samples = any(loss_trait(loss, "compares_samples") for loss in losses)
        self.takes_maps = any(loss_trait(loss, "takes_maps") for loss in losses)

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], target: Any = None) -> Tensor:
        """Compute the weighted mean of the losses of the student's features and each teacher's."""
        students = student if isinstance(student, list) else [student] * len(self.losses)
        if not isinstance(teacher, list) or not len(students) == len(teacher) == len(self.losses):
            raise UsageError(
                f"{len(self.losses)} losses cannot compare {_describe(student)} of the student with "
                f"{_describe(teacher)} of the teachers: in the term, list one teacher's layer for each loss"
            )
        compared = zip(self.weights, self.losses, students, teacher, strict=True)
        total = torch.stack([weight * loss(s, t, target) for weight, loss, s, t in compared]).sum()
        return total / sum(self.weights)


def _describe(features: Any) -> str:
    return f"a list of {len(features)}" if isinstance(features, list) else "a tensor"
