"""Moments of a fit at which a checkpoint resumes exactly, and the counters that it has to hold there."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.lightning_internals import BATCHES_THAT_STEPPED, is_validation_due, should_accumulate

EPOCHS, VALIDATION = "epoch_progress", "epoch_loop.val_loop.batch_progress"
BATCHES, STEPS = "epoch_loop.batch_progress", "epoch_loop.state_dict"


def is_resume_point(trainer: Trainer) -> bool:
    """Tell if a checkpoint written now, after an error or an interrupt, would resume exactly.

    It would between two batches outside of a window of accumulated gradients, in a validation, and between two epochs.
    It would not in a batch, because weights, buffers, optimizers and counters change one after another, nor at the
    start or end of an epoch, whose hooks have run in part.
    """
    loop: Any = trainer.fit_loop
    batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress
    counted = (batches.total, batches.current)
    if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or loop.epoch_loop.restarting:
        return False
    if any(not count.ready == count.processed == count.completed for count in counted) or should_accumulate(loop):
        return False
    if epochs.total.ready == epochs.total.completed:  # between two epochs
        return epochs.current.ready == epochs.current.completed
    for count in (epochs.total, epochs.current):
        if not count.ready == count.started == count.processed + 1 == count.completed + 1:
            return False
    if trainer.validating:
        if trainer.global_step == trainer.max_steps:  # Lightning would not resume at all
            return False
        # such a callback exchanges the weights for the averaged ones while it validates
        callbacks = callbacks_of(trainer)
        return not any(isinstance(callback, WeightAveraging) for callback in callbacks)
    return not loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches


def correct_counters(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Correct the counters of loops in a checkpoint, so that Lightning resumes where the run was.

    - A validation that was due, or had begun, is run at the resume. Lightning omits it.
    - The loggers' step number stays right after a resume that finds a validation due which is over. Lightning counts
      the batch before it twice.
    - A run that was interrupted between two epochs begins the next one. Lightning counts that epoch as trained.

    Args:
        trainer: The trainer that writes the checkpoint.
        checkpoint: The content, before it is written.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if not loops or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return
    is_interrupted = trainer.state.status == TrainerStatus.INTERRUPTED
    batches, epochs = loops[BATCHES], loops[EPOCHS]
    if trainer.validating:
        if is_interrupted:
            _begin_validation(loops[VALIDATION])
        return
    is_due = is_validation_due(trainer)
    if epochs["total"]["processed"] == epochs["total"]["ready"]:  # at the end of an epoch, or between two
        if is_due and trainer.max_steps != -1:
            loops[STEPS][BATCHES_THAT_STEPPED] -= 1
        if epochs["total"]["completed"] == epochs["total"]["ready"] and is_interrupted:
            for count in (epochs["total"], epochs["current"]):
                count["completed"] -= 1
    elif is_due and batches["total"]["processed"] > batches["total"]["completed"]:  # in `on_train_batch_end`
        for count in (batches["total"], batches["current"]):
            count["completed"] += 1
        _begin_validation(loops[VALIDATION])
    elif is_due and is_interrupted:
        loops[STEPS][BATCHES_THAT_STEPPED] -= 1


def _begin_validation(progress: dict[str, Any]) -> None:
    """Let a validation's counters stand in its first batch."""
    for count in (progress["total"], progress["current"]):
        count |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
