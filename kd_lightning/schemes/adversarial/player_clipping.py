"""Gradient clipping of schemes with several optimizers."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from kd_lightning.core.attached import detach


class PlayerClipping(Callback):
    """Clip each optimizer's gradients by the trainer's ``gradient_clip_val``, before each of its steps.

    Lightning refuses that setting for manual optimization. A scheme of two players takes it from the trainer for the
    length of a fit, and clips as automatic optimization does: after gradients are unscaled and looked at, each
    optimizer's by themselves.

    Args:
        trainer: At the start of a fit, before Lightning checks its settings.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.limit, self.algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        trainer.gradient_clip_val = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clip the gradients of the optimizer that steps."""
        trainer.precision_plugin.clip_gradients(
            optimizer, self.limit or 0.0, self.algorithm or GradClipAlgorithmType.NORM
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the setting back."""
        detach(trainer, self)
        trainer.gradient_clip_val = self.limit

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the setting back after a failed fit, too."""
        self.teardown(trainer, pl_module, "fit")
