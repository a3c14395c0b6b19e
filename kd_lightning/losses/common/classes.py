"""What the losses share that tell the labelled class from the others."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError


def check_classes(student: Tensor, target: Tensor) -> None:
    """A ValueError with both shapes unless they are logits (N, C), N >= 1 and C >= 2, and class indices (N,)."""
    logits = student.dim() == 2 and student.shape[0] >= 1 and student.shape[1] >= 2
    if not logits or target.shape != student.shape[:1] or target.dtype not in (torch.int64, torch.uint8):
        raise UsageError(
            f"logits {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: logits are "
            "(N, C), N >= 1 and C >= 2, targets int64 class indices (N,)"
        )


NO_CLASS = -1e30
"""A logit whose probability is 0, and finite, so that differences of two are 0 as well."""


def split_off(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled class's logit (N, 1), and the logits (N, C) with `NO_CLASS` in its place."""
    index = target.long().unsqueeze(1)
    return logits.gather(1, index), logits.scatter(1, index, NO_CLASS)
