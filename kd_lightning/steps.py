"""Where in training this is, right after every resume: the batch, the epoch, the optimizer step."""

from __future__ import annotations

from lightning.pytorch import Trainer


def batches_done(trainer: Trainer) -> int:
    """Training batches whose step is over; before and during a step, the number of its batch.

    Of Lightning's counters this one alone is right after every resume: the number of the epoch is one too high after a
    resume under `max_steps` from the end of an epoch, and what a loader gave is one too many when a step fails.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]


def epoch(trainer: Trainer) -> int:
    """The epoch of the batch that is trained on, from 0.

    After a resume under ``max_steps`` from the end of an epoch, Lightning cuts the next epochs one batch late: a batch
    that the number of batches puts into the next epoch is in it.
    """
    length = trainer.num_training_batches  # an infinite float where it is not known
    return trainer.current_epoch + (batches_done(trainer) // length == trainer.current_epoch + 1)


def optimizer_step(trainer: Trainer) -> int:
    """Steps finished so far: one answer for every scheme, whatever the number of its optimizers.

    ``trainer.global_step`` counts each optimizer's step, so that with two optimizers it runs twice as fast: in manual
    optimization every batch is a step. Gradient accumulation counts once for each accumulated group.
    """
    # trainer.global_step, in a tenth of its calls; 0 in manual optimization
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer_steps
    if steps or trainer.lightning_module.automatic_optimization:
        return steps
    return batches_done(trainer)


def log_is_due(trainer: Trainer) -> bool:
    """True in the steps whose metrics the loggers will keep: logging in any other is work thrown away."""
    every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    # the loggers' own count, which Lightning goes by, and which is one too high after some resumes
    logged = trainer.fit_loop.epoch_loop._batches_that_stepped  # pyright: ignore[reportPrivateUsage]
    if every == 0 or (logged + 1) % every:  # 0 means never: Trainer(barebones=True)
        return False
    return not trainer.fit_loop._should_accumulate()  # pyright: ignore[reportPrivateUsage]
