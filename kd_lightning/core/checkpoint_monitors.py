"""Checkpoints ranked by the values of the weights that they hold, and not by those of an earlier step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from kd_lightning.core.attached import attach, detach, find_attached
from kd_lightning.core.lightning_internals import (
    epoch_save_is_unset,
    is_validation_due,
    logged_names,
    save_interval,
    saves_at_epoch_end,
    set_epoch_save,
)
from kd_lightning.core.training_means import TrainingMeans


class CheckpointMonitors(Callback):
    """Let a `ModelCheckpoint` that monitors a value of a validation rank each file by the validation of its weights.

    With ``every_n_train_steps`` Lightning saves before the validation of the same step, and ranks the file by the
    validation before it. Here that save follows the validation. A file of a step that no validation follows cannot be
    ranked rightly: one warning names the callback and the remedy.

    A `Learner` and `Distillation` attach it for the length of a fit.

    Args:
        means: The callback that gives the means of the training losses, which are never of an earlier step.
    """

    def __init__(self, means: TrainingMeans) -> None:
        self.means = means
        self._changed: list[ModelCheckpoint] = []
        self._validated = -1
        """Value of ``trainer.global_step`` at the last validation."""
        self._warned: set[int] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        self._validated, self._warned = -1, set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the saves of steps that have to wait happen at the end of the validation."""
        for callback in _checkpoints(trainer):
            if save_interval(callback) > 0 and callback.monitor is not None and epoch_save_is_unset(callback):
                set_epoch_save(callback, False)
                self._changed.append(callback)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hide the value of an earlier validation from a save that is due now, so that it waits for the next one."""
        for callback in _checkpoints(trainer):
            interval = save_interval(callback)
            if interval > 0 and trainer.global_step % interval == 0 and self._is_old(trainer, callback.monitor):
                if is_validation_due(trainer):
                    trainer.callback_metrics.pop(str(callback.monitor))
                else:
                    self._warn(callback, f"every_n_train_steps={interval}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember which weights the values are of."""
        if not trainer.sanity_checking:
            self._validated = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a file that is about to be ranked by the validation of other weights."""
        if self._validated == trainer.global_step:
            return
        for callback in _checkpoints(trainer):
            if saves_at_epoch_end(callback, trainer) and self._is_old(trainer, callback.monitor):
                self._warn(callback, "save_on_train_epoch_end=True")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer and its checkpoints."""
        for callback in self._changed:
            set_epoch_save(callback, None)
        self._changed = []
        detach(trainer, self)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the trainer after a failed fit, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- inside

    def _is_old(self, trainer: Trainer, monitor: str | None) -> bool:
        """Tell if a value was logged neither in this training epoch nor in a validation of the current weights."""
        if monitor not in trainer.callback_metrics or monitor in self.means.names:
            return False
        return self._validated != trainer.global_step and monitor not in logged_names(trainer)

    def _warn(self, callback: ModelCheckpoint, setting: str) -> None:
        if id(callback) not in self._warned:
            self._warned.add(id(callback))
            rank_zero_warn(
                f"ModelCheckpoint(monitor={callback.monitor!r}, {setting}) saves at steps without a validation, and "
                "ranks those files by an earlier one: save at the steps that are validated, or monitor 'train/loss'"
            )


def attach_monitors(trainer: Trainer, module: LightningModule) -> TrainingMeans:
    """Add `TrainingMeans` and `CheckpointMonitors` to a trainer's callbacks for a fit, unless they are there.

    Args:
        trainer: In the `setup` of a fit.
        module: The module to train.

    Returns:
        The means, which take the losses of each step.
    """
    found = find_attached(trainer, TrainingMeans)
    if found is None:
        found = TrainingMeans()
        parts: list[Callback] = [found, CheckpointMonitors(found)]
        attach(trainer, *parts)
        for part in parts:
            part.setup(trainer, module, "fit")
    return found


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
