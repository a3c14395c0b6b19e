"""Activation record loss: fit an input to recorded activations of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def activation_record_loss(student: Tensor | list[Tensor], target: Tensor) -> Tensor:
    """Mean squared error between the positive parts of layers' activations and of recorded activations.

    L = sum_l 1/D_l mean_nd (relu(f_nd) - relu(r_nd))^2, for layers of D_l values a sample

    The error of a single layer is not divided by D.

    Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free Knowledge Distillation for Deep Neural Networks. 2017
    (arXiv:1710.07535), with the factors of the authors' code for all layers and for the top layer.

    Args:
        student: Activations of a layer (N, ...), or a list of those of several layers.
        target: The recorded activations of all layers, flattened and concatenated, (N, D).

    Raises:
        UsageError: The record differs from the layers in the number of samples or values.

    Example:
        >>> activation_record_loss(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, -9.0]]))
        tensor(2.)
    """
    layers = student if isinstance(student, list) else [student]
    sizes = [layer[0].numel() if len(layer) else 0 for layer in layers]
    if target.dim() != 2 or any(len(layer) != len(target) for layer in layers) or sum(sizes) != target.shape[1]:
        shapes = ", ".join(str(tuple(layer.shape)) for layer in layers)
        raise UsageError(
            f"activations {shapes} and their record {tuple(target.shape)} do not fit: record the layers that the term "
            "addresses, in their order"
        )
    parts: list[Tensor] = []
    for layer, record, size in zip(layers, target.split(sizes, dim=1), sizes, strict=True):
        activations = upcast(layer).flatten(1).relu()
        error = (activations - record.to(activations.dtype).relu()).square().mean()
        parts.append(error / size if len(layers) > 1 else error)
    return torch.stack(parts).sum()


class ActivationRecordLoss(DistillationLoss):
    """Fits an input to recorded activations (Lopes et al. 2017, arXiv:1710.07535); see `activation_record_loss`.

    To apply it to a teacher: ``Term(ActivationRecordLoss(), student=None, teacher=["conv.5", "logits"])``.
    """

    needs_target = True

    def forward(self, student: Tensor | list[Tensor], teacher: None, target: Tensor) -> Tensor:
        """Compute the loss of activations (N, ...), or of a list of them; `teacher` is unused."""
        return activation_record_loss(student, target)
