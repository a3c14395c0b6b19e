"""Helpers of losses that treat the labelled class and the other classes separately."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import UNLABELED


def check_classes(student: Tensor, target: Tensor) -> None:
    """Check that these are logits (N, C) with N >= 1 and C >= 2, and class indices (N,); else a `UsageError`."""
    logits = student.dim() == 2 and student.shape[0] >= 1 and student.shape[1] >= 2
    if not logits or target.shape != student.shape[:1] or target.dtype not in (torch.int64, torch.uint8):
        raise UsageError(
            f"logits {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: logits are "
            "(N, C), N >= 1 and C >= 2, targets int64 class indices (N,)"
        )


NO_CLASS = -1e30
"""A logit whose probability is 0, but finite, so that the difference of two such logits is 0."""


def split_off(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled class's logit (N, 1), and the logits (N, C) with `NO_CLASS` in its place.

    For a sample without a label it is any class.

    Example:
        >>> own, others = split_off(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
        >>> own, others.softmax(dim=1)
        (tensor([[2.]]), tensor([[1., 0.]]))
    """
    index = class_indices(target).unsqueeze(1)
    return logits.gather(1, index), logits.scatter(1, index, NO_CLASS)


def class_indices(target: Tensor) -> Tensor:
    """Return labels as indices that can be gathered: class 0 for samples without a label."""
    target = target.long()
    return target.masked_fill(target == UNLABELED, 0)


def labeled_mean(values: Tensor, target: Tensor) -> Tensor:
    """Average values (N,) over the samples that have a label; 0 with a gradient of 0 where none has.

    Example:
        >>> labeled_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([7, -100, 2]))
        tensor(2.)
    """
    labeled = target.long() != UNLABELED
    return values.where(labeled, 0).sum() / labeled.sum().clamp(min=1)
