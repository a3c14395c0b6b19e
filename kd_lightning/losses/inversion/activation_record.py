"""What makes an input one that excites a network as a record says."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast


def activation_record_loss(student: Tensor | list[Tensor], target: Tensor) -> Tensor:
    """Mean squared error between the positive parts of layers' activations and of recorded ones.

    L = sum_l 1/D_l mean_nd (relu(f_nd) - relu(r_nd))^2, over D_l numbers of each of N samples, for several layers; for
    one layer alone without the factor 1/D

    Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free Knowledge Distillation for Deep Neural Networks. 2017
    (arXiv:1710.07535), as the authors' code has it for all layers and for the top layer.

    Args:
        student: Activations of a layer (N, ...), or of each of several.
        target: Of all of them, flattened and one behind the other, (N, D).

    Raises:
        UsageError: The record is not of as many samples and numbers as the layers.

    Example:
        >>> activation_record_loss(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, -9.0]]))
        tensor(2.)
    """
    layers = student if isinstance(student, list) else [student]
    sizes = [layer[0].numel() if len(layer) else 0 for layer in layers]
    if target.dim() != 2 or any(len(layer) != len(target) for layer in layers) or sum(sizes) != target.shape[1]:
        shapes = ", ".join(str(tuple(layer.shape)) for layer in layers)
        raise UsageError(
            f"activations {shapes} and a record {tuple(target.shape)} of them do not fit: record the layers that the "
            "term addresses, in their order"
        )
    parts: list[Tensor] = []
    for layer, record, size in zip(layers, target.split(sizes, dim=1), sizes, strict=True):
        found = upcast(layer).flatten(1).relu()
        apart = (found - record.to(found.dtype).relu()).square().mean()
        parts.append(apart / size if len(layers) > 1 else apart)
    return torch.stack(parts).sum()


class ActivationRecordLoss(DistillationLoss):
    """Fits an input to recorded activations (Lopes et al. 2017, arXiv:1710.07535); see `activation_record_loss`.

    Of a teacher: ``Term(ActivationRecordLoss(), student=None, teacher=["conv.5", "logits"])``.
    """

    needs_target = True

    def forward(self, student: Tensor | list[Tensor], teacher: None, target: Tensor) -> Tensor:
        """The loss of activations (N, ...), or of a list of them; `teacher` is not looked at."""
        return activation_record_loss(student, target)
