"""Convolution weights with their channels innermost in memory: the same mathematics, faster on CPUs."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ChannelsLast(Callback):
    """Lays out all four-dimensional weights channels-last, so that convolutions compute in that layout.

    Student, teacher and whatever else is registered; checkpoints load into either layout. On one CPU thread the
    origin's student takes an eighth less time a step, its teacher a quarter less a forward pass.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before there is an optimizer."""
        pl_module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
