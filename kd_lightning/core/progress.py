"""Counters of a training run that are right directly after every resume: batches, epoch and optimizer step."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.core.lightning_internals import attached_trainer, batches_that_stepped, should_accumulate


def completed_batches(trainer: Trainer) -> int:
    """Count the training batches whose step is over; before and during a step this is the number of its batch.

    Of Lightning's counters this one alone is right after every resume: the number of the epoch is one too high after a
    resume under `max_steps` from the end of an epoch, and the count of fetched batches is one too high when a step
    fails.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]


def batches_of(module: LightningModule) -> int:
    """Count the `completed_batches` of a module's trainer; 0 outside a run."""
    trainer = attached_trainer(module)
    return 0 if trainer is None else completed_batches(trainer)


def epoch(trainer: Trainer) -> int:
    """Give the epoch of the current training batch, from 0.

    After a resume under ``max_steps`` from the end of an epoch, Lightning cuts the next epochs one batch late: a batch
    that the number of batches puts into the next epoch is in it.
    """
    length = trainer.num_training_batches  # an infinite float where it is not known
    return trainer.current_epoch + (completed_batches(trainer) // length == trainer.current_epoch + 1)


def optimizer_step(trainer: Trainer) -> int:
    """Count the finished optimizer steps, by one rule for every scheme, whatever the number of its optimizers.

    ``trainer.global_step`` counts each optimizer's step, so that with two optimizers it runs twice as fast: in manual
    optimization every batch is a step. Gradient accumulation counts once for each accumulated group.
    """
    # trainer.global_step, in a tenth of its calls; 0 in manual optimization
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer_steps
    if steps or trainer.lightning_module.automatic_optimization:
        return steps
    return completed_batches(trainer)


def should_log(trainer: Trainer) -> bool:
    """Tell if the loggers will keep the metrics of this step: logging in any other step is wasted work."""
    every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    # the count that Lightning's loggers go by, which is one too high after some resumes
    if every == 0 or (batches_that_stepped(trainer) + 1) % every:  # 0 means never: Trainer(barebones=True)
        return False
    return not should_accumulate(trainer.fit_loop)
