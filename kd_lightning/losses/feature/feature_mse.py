"""Mean squared error between features of one shape, without a connector."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, upcast
from kd_lightning.losses.common.vectors import squared_error


def feature_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between features of one shape, over batch and features.

    L = 1 / (N D) sum_nd (s_nd - t_nd)^2

    Linfeng Zhang et al.: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation. ICCV 2019 (arXiv:1905.08094), the third loss of the paper, which writes the sum over features: its
    weight lambda is lambda D here. FitNets' hint loss is half of this loss, with a connector between different shapes.

    Other implementations differ: the authors' later code applies a linear layer first, takes the root of the sum over
    the whole batch (with weight 0.03) and skips the shallowest exit; others sum over the batch (with weight 1e-6), or
    take the mean (0.05).

    Args:
        student: Features (N, ...), of D values a sample.
        teacher: Features of the same shape.

    Raises:
        UsageError: The shapes differ, or there are no features.

    Example:
        >>> import torch
        >>> feature_mse_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[[4.0, 0.0]], [[0.0, 2.0]]]]))
        tensor(5.)
    """
    check_same_shape(student, teacher)
    return squared_error(upcast(student), upcast(teacher))


class FeatureMSELoss(DistillationLoss):
    """Mean squared error between features, as in Be Your Own Teacher (Zhang et al. 2019); see `feature_mse_loss`."""

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); `target` is unused."""
        return feature_mse_loss(student, teacher)
