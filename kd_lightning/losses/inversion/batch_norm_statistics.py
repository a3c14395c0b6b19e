"""How far a batch is from what a network's BatchNorm layers remember of its training data."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def batch_norm_statistics_loss(student: Tensor | list[Tensor]) -> Tensor:
    """Distance of the statistics of features, before BatchNorm layers, from those that the layers remember.

    L = sum_l ||mu(f_l) - m_l||_2 + ||s^2(f_l) - v_l||_2, over the channels; mu and s^2 are the batch's, over samples
    and positions, on each process by itself as a BatchNorm's own, and the variance divides by the number of values

    Hongxu Yin, Pavlo Molchanov, Zhizhong Li, Jose M. Alvarez, Arun Mallya, Derek Hoiem, Niraj K. Jha, Jan Kautz:
    Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion. CVPR 2020 (arXiv:1912.08795).

    Args:
        student: Three of each layer: what goes into it (N, C, ...), its ``running_mean`` (C,) and ``running_var`` (C,).

    Raises:
        UsageError: These are not three a layer, the shapes do not fit, or there is one sample alone.

    Example:
        >>> features = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]])
        >>> batch_norm_statistics_loss([features, torch.tensor([2.0]), torch.tensor([4.0])])
        tensor(3.)
    """
    if isinstance(student, Tensor) or not student or len(student) % 3:
        raise UsageError(
            "BatchNormStatisticsLoss looks at three of each layer in a batch: address a list of what goes into a "
            "BatchNorm, its running_mean and its running_var"
        )
    return torch.stack([_distance(*student[i : i + 3]) for i in range(0, len(student), 3)]).sum()


class BatchNormStatisticsLoss(DistillationLoss):
    """Distance from BatchNorms' statistics (Yin et al. 2020, arXiv:1912.08795); see `batch_norm_statistics_loss`.

    Its term addresses three of each layer: ``student: null, teacher: [conv.0.0, conv.0.1.running_mean,
    conv.0.1.running_var]``.
    """

    def forward(self, student: Tensor | list[Tensor], teacher: None = None, target: Tensor | None = None) -> Tensor:
        """The loss of such a list; nothing else is looked at."""
        return batch_norm_statistics_loss(student)


def _distance(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if features.dim() < 2 or len(features) < 2 or not mean.shape == variance.shape == features.shape[1:2]:
        raise UsageError(
            f"features {tuple(features.shape)}, mean {tuple(mean.shape)} and variance {tuple(variance.shape)} must be "
            "(N, C, ...) of a batch of N >= 2 samples, (C,) and (C,): address the layer before a BatchNorm and its "
            "running_mean and running_var"
        )
    rows = upcast(features).transpose(0, 1).flatten(1)
    found, spread = rows.mean(dim=1), rows.var(dim=1, correction=0)
    return torch.linalg.vector_norm(found - mean) + torch.linalg.vector_norm(spread - variance)
