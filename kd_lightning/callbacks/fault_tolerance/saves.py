"""No checkpoint of a moment that could not be resumed exactly."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


def skip_saves_on_exception(trainer: Trainer) -> None:
    """Let no checkpoint callback save in the exception that is being handled; `save_on_exception` does otherwise."""
    for callback in trainer.checkpoint_callbacks:
        _skip_once(callback)


def _skip_once(callback: Checkpoint) -> None:
    def skip(trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        vars(callback).pop("on_exception", None)

    vars(callback)["on_exception"] = skip
