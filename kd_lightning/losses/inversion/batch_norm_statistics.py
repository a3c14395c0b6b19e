"""Distance between a batch's statistics and the running statistics of a network's BatchNorm layers."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def batch_norm_statistics_loss(student: Tensor | list[Tensor]) -> Tensor:
    """Distance between the statistics of BatchNorm layers' inputs and the layers' running statistics.

    L = sum_l ||mu(f_l) - m_l||_2 + ||s^2(f_l) - v_l||_2, norms over channels

    mu and s^2 are mean and variance of the batch over samples and positions, on each process separately, as in
    BatchNorm. The variance divides by the number of values.

    Hongxu Yin, Pavlo Molchanov, Zhizhong Li, Jose M. Alvarez, Arun Mallya, Derek Hoiem, Niraj K. Jha, Jan Kautz:
    Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion. CVPR 2020 (arXiv:1912.08795).

    Args:
        student: Three tensors for each layer: its input (N, C, ...), ``running_mean`` (C,) and ``running_var`` (C,).

    Raises:
        UsageError: There are not three for each layer, the shapes do not fit, or there is only one sample.

    Example:
        >>> features = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]])
        >>> batch_norm_statistics_loss([features, torch.tensor([2.0]), torch.tensor([4.0])])
        tensor(3.)
    """
    if isinstance(student, Tensor) or not student or len(student) % 3:
        raise UsageError(
            "BatchNormStatisticsLoss needs three tensors for each layer: address the layer before a BatchNorm, its "
            "running_mean and its running_var"
        )
    return torch.stack([_distance(*student[i : i + 3]) for i in range(0, len(student), 3)]).sum()


class BatchNormStatisticsLoss(DistillationLoss):
    """Distance from BatchNorm's running statistics (Yin et al. 2020, arXiv:1912.08795).

    See `batch_norm_statistics_loss`. Its term addresses three tensors for each layer: ``student: null, teacher:
    [conv.0.0, conv.0.1.running_mean, conv.0.1.running_var]``.
    """

    def forward(self, student: Tensor | list[Tensor], teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of a list with three tensors for each layer; the other arguments are unused."""
        return batch_norm_statistics_loss(student)


def _distance(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if features.dim() < 2 or len(features) < 2 or not mean.shape == variance.shape == features.shape[1:2]:
        raise UsageError(
            f"features {tuple(features.shape)}, mean {tuple(mean.shape)} and variance {tuple(variance.shape)} must be "
            "(N, C, ...) with N >= 2 samples, (C,) and (C,): address the layer before a BatchNorm and its "
            "running_mean and running_var"
        )
    rows = upcast(features).transpose(0, 1).flatten(1)
    batch_mean, batch_variance = rows.mean(dim=1), rows.var(dim=1, correction=0)
    return torch.linalg.vector_norm(batch_mean - mean) + torch.linalg.vector_norm(batch_variance - variance)
