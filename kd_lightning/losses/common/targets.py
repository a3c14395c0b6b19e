"""Checks of labels that are not class indices: distributions over classes, labels that can hold together, real values.

The values of a label are on the device, and reading them waits for it: the losses' modules do so in their first call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.label_kinds import are_distributions


def check_distributions(target: Tensor) -> None:
    """Check that the rows of a target (N, C) are distributions over classes: they sum to 1."""
    if not torch.compiler.is_compiling() and not are_distributions(target):
        sums = target.sum(dim=1)
        raise UsageError(
            f"target {tuple(target.shape)} holds rows that sum to {sums.min():g} up to {sums.max():g}, so they are no "
            "probabilities of classes that exclude each other: for labels that can hold together use BinaryTaskLoss, "
            "and BernoulliKDLoss for their distillation"
        )


def check_labels(target: Tensor, unlabeled: int) -> None:
    """Check that labels of a binary kind lie in [0, 1], whole numbers `unlabeled` left out."""
    if torch.compiler.is_compiling() or target.dtype == torch.bool:
        return
    wrong = (target < 0) | (target > 1)
    if not target.is_floating_point():
        wrong &= target != unlabeled
    if bool(wrong.any()):
        raise UsageError(
            f"target {tuple(target.shape)} holds the label {target[wrong][0].item():g}: labels that can hold together "
            "are 0 and 1, or probabilities; class indices need TaskLoss, and real values RegressionTaskLoss"
        )


def of_one_shape(student: Tensor, target: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return outputs and their labels in one shape: of one output a sample, (N,) and (N, 1) are alike."""
    if student.dim() == 4 and target.dim() == 3 and student.shape[1] == 1:  # one output a pixel
        target = target.unsqueeze(1)
    elif student.dim() == target.dim() + 1 and student.shape[-1] == 1:
        target = target.unsqueeze(-1)
    elif target.dim() == student.dim() + 1 and target.shape[-1] == 1:
        target = target.squeeze(-1)
    if student.shape != target.shape or not student.dim() or not student.numel():
        raise UsageError(
            f"outputs {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: targets "
            f"are {what}"
        )
    return student, target
