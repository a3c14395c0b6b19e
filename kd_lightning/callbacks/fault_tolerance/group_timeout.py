"""Time-outs of operations between processes: short while all of them train, long elsewhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.core.launcher_internals import group_timeout
from kd_lightning.core.torch_internals import set_group_timeout


class GroupTimeout(Callback):
    """Shorten the time-out of operations between processes from the second batch of a series of batches on.

    Before the first batch one process alone may cache teacher outputs, compile or save, and before the next series
    validate or save: there, the strategy's own time-out holds. Before it does, the processes wait for each other within
    the short one, so that a process that hangs in the last batch of a series is found as well.

    Args:
        seconds: The time-out between two training batches; a longer one than the strategy's has no effect.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._short = self._long = timedelta()
        self._is_short = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the strategy's time-out."""
        self._long = group_timeout(trainer)
        self._short = min(timedelta(seconds=self.seconds), self._long)
        self._is_short = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shorten the time-out after the first batch of a series."""
        if not self._is_short:
            self._is_short = True
            set_group_timeout(self._short)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last batch of all processes, and restore the strategy's time-out."""
        self._end_series(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last batch of all processes, and restore the strategy's time-out."""
        self._end_series(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the strategy's time-out."""
        self._restore()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the strategy's time-out, for the other processes wait while the first one writes the file."""
        self._restore()

    def _end_series(self, trainer: Trainer) -> None:
        if self._is_short:
            trainer.strategy.barrier()
        self._restore()

    def _restore(self) -> None:
        if self._is_short:
            self._is_short = False
            set_group_timeout(self._long)
