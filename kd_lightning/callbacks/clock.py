"""Where in training this is, right after every resume."""

from __future__ import annotations

from lightning.pytorch import Trainer


def batches_done(trainer: Trainer) -> int:
    """Training batches whose step is over; before and during a step, the number of its batch.

    Of Lightning's counters this one alone is right after every resume.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]


def epoch(trainer: Trainer) -> int:
    """The epoch of the batch that is trained on, from 0.

    After a resume under ``max_steps`` from the end of an epoch, Lightning cuts the next epochs one batch late: a batch
    that the number of batches puts into the next epoch is in it.
    """
    length = trainer.num_training_batches  # an infinite float where it is not known
    return trainer.current_epoch + (batches_done(trainer) // length == trainer.current_epoch + 1)
