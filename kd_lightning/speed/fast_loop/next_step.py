"""Prediction of the next step's end: Lightning ends the epoch, validates, saves, logs or draws a bar."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.core.lightning_internals import (
    BATCHES_THAT_STEPPED,
    TrainingEpochLoop,
    save_interval,
    validates_in_this_epoch,
)
from kd_lightning.speed.fast_loop.hooks import is_progress_bar


class NextStep:
    """Predicts, before a step, what follows it; built again after each of Lightning's own steps.

    Steps are of three kinds:

    - Lightning's own: something follows that this loop does not do itself (`needs_lightning`).
    - Idle: no logging, validation or checkpointing, and no bar is drawn (`is_idle_step`). This is nearly every step.
    - The others are logged: they run in this loop, with the calls that hand the values to loggers and bars.

    Settings are read here once: they do not change before the next validation.

    Args:
        loop: The training epoch loop.
    """

    def __init__(self, loop: TrainingEpochLoop) -> None:
        trainer: Any = loop.trainer
        self.loop, self.trainer = loop, trainer
        self.loop_state = vars(loop)
        self.current, self.total = loop.batch_progress.current, loop.batch_progress.total
        self.optimizer_steps = loop.automatic_optimization.optim_progress.optimizer.step.total
        self.num_batches = trainer.num_training_batches
        self.log_interval = cast("int", trainer.log_every_n_steps)
        validates = validates_in_this_epoch(loop) and trainer.val_check_batch != float("inf")
        self.val_interval = cast("int", trainer.val_check_batch) if validates else 0
        self.val_counts_epochs = trainer.check_val_every_n_epoch is None
        self.num_callbacks = len(trainer.callbacks)
        checkpoints = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]
        self.save_intervals = [interval for each in checkpoints if (interval := save_interval(each)) > 0]
        bar: Any = next((callback for callback in trainer.callbacks if is_progress_bar(callback)), None)
        self.refresh_interval = bar.refresh_rate if bar is not None and bar.is_enabled else 0

    def needs_lightning(self, fetcher: Any) -> bool:
        """Tell if the step has to be Lightning's own."""
        batch = self.current.ready + 1
        # The epoch's last batch: schedulers, metrics and checkpoints of the epoch follow. The loader may end before
        # the counted batches do. A callback may have been added in the midst of the epoch.
        if (
            batch >= self.num_batches
            or fetcher.fetched + 1 >= fetcher.length
            or len(self.trainer.callbacks) != self.num_callbacks
        ):
            return True
        if self.val_interval and (self.total.ready + 1 if self.val_counts_epochs else batch) % self.val_interval == 0:
            return True
        step = self.optimizer_steps.completed + 1
        if step == self.loop.max_steps:
            return True
        return bool(self.save_intervals) and any(step % interval == 0 for interval in self.save_intervals)

    def is_idle_step(self) -> bool:
        """Tell if no logger keeps the step's values and no bar shows them."""
        if self.log_interval and (self.loop_state[BATCHES_THAT_STEPPED] + 1) % self.log_interval == 0:
            return False
        return not self.refresh_interval or (self.current.ready + 1) % self.refresh_interval != 0
