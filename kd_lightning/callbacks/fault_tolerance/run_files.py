"""Whole checkpoint files, in directories that no second process writes to, with the logs of the steps before."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.core.attached import attach, detach, find_attached
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lightning_internals import replaces_files
from kd_lightning.weights.checkpoint_io import AtomicCheckpointIO


class RunFiles(Callback):
    """Write checkpoints with `AtomicCheckpointIO`, lock their directories, and save the logs before each of them.

    A CheckpointIO of your own, such as one for sharded or asynchronous checkpoints, stays. The locked directories are
    those in which files are replaced: of every `ModelCheckpoint` with ``enable_version_counter=False``.

    Raises:
        UsageError: At the start of the fit, on every process: another run writes to such a directory.
    """

    def __init__(self) -> None:
        self._locks: list[DirectoryLock] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's CheckpointIO before a checkpoint is read or written."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock the directories in the first process; directories of checkpoints are known by now."""
        failure = ""
        if trainer.is_global_zero:
            try:
                self._lock(trainer)
            except UsageError as error:
                failure = str(error)
        if failure := trainer.strategy.broadcast(failure):  # else other processes would wait for this one
            self._release()
            raise UsageError(failure)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the rows that the loggers hold, so that a resume from this checkpoint lacks no earlier row."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unlock the directories."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlock the directories, and restore the trainer's callbacks."""
        self._release()
        detach(trainer, self)

    def _lock(self, trainer: Trainer) -> None:
        directories = {
            callback.dirpath
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and replaces_files(callback)
        }
        for directory in sorted(str(each) for each in directories if each is not None and "://" not in str(each)):
            lock = DirectoryLock(directory, "a run", "name another dirpath of ModelCheckpoint")
            lock.acquire()
            self._locks.append(lock)

    def _release(self) -> None:
        for lock in self._locks:
            lock.release()
        self._locks = []


def attach_run_files(trainer: Trainer, module: LightningModule) -> None:
    """Add `RunFiles` to a trainer's callbacks for the length of a fit, unless it is there.

    Args:
        trainer: In the `setup` of a fit.
        module: The module to train.
    """
    if find_attached(trainer, RunFiles) is None:
        part = RunFiles()
        attach(trainer, part)
        part.setup(trainer, module, "fit")
