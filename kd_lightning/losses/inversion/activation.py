"""Activation loss: reward strong responses of a layer."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def activation_loss(student: Tensor) -> Tensor:
    """Negative mean magnitude of features: L = -mean |f|.

    Inputs that resemble the training data make a network's filters respond more strongly.

    Hanting Chen et al.: Data-Free Learning of Student Networks. ICCV 2019 (arXiv:1904.01186), applied to the features
    before a teacher's classifier, with weight .1.

    Args:
        student: Features (N, ...).

    Raises:
        UsageError: The features are empty, or have no dimension beside N.

    Example:
        >>> import torch
        >>> activation_loss(torch.tensor([[1.0, -3.0]]))
        tensor(-2.)
    """
    if student.dim() < 2 or not student.numel():
        raise UsageError(f"features {tuple(student.shape)} must be (N, ...) and not empty: address a layer of features")
    return -upcast(student).abs().mean()


class ActivationLoss(DistillationLoss):
    """Negative mean magnitude of features (Chen et al. 2019, arXiv:1904.01186); see `activation_loss`.

    To apply it to a teacher: ``Term(ActivationLoss(), student=None, teacher="pool")``.
    """

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, ...); the other arguments are unused."""
        return activation_loss(student)
