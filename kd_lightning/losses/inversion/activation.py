"""How strongly a layer responds."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def activation_loss(student: Tensor) -> Tensor:
    """The negative mean magnitude of features: L = -mean |f|, for what a network knows makes its filters respond.

    Hanting Chen et al.: Data-Free Learning of Student Networks. ICCV 2019 (arXiv:1904.01186), of the features before a
    teacher's classifier. The weight is .1.

    Args:
        student: Features (N, ...).

    Raises:
        UsageError: They are empty, or have no dimension beside N.

    Example:
        >>> import torch
        >>> activation_loss(torch.tensor([[1.0, -3.0]]))
        tensor(-2.)
    """
    if student.dim() < 2 or not student.numel():
        raise UsageError(f"features {tuple(student.shape)} must be (N, ...) and not empty: address a layer of features")
    return -upcast(student).abs().mean()


class ActivationLoss(DistillationLoss):
    """The negative mean magnitude of features (Chen et al. 2019, arXiv:1904.01186); see `activation_loss`.

    Of a teacher: ``Term(ActivationLoss(), student=None, teacher="pool")``.
    """

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """The loss of features (N, ...); nothing else is looked at."""
        return activation_loss(student)
