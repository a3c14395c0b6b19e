"""Which optimizer step this is: one answer for every scheme, whatever the number of its optimizers."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import Trainer


def optimizer_step(trainer: Trainer) -> int:
    """Steps finished so far, right after every resume.

    ``trainer.global_step`` counts each optimizer's step, so that with two optimizers it runs twice as fast: in manual
    optimization every batch is a step. Gradient accumulation counts once for each accumulated group.
    """
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]


def log_is_due(trainer: Trainer) -> bool:
    """True in the steps whose metrics the loggers will keep: logging in any other is work thrown away."""
    accumulating = trainer.fit_loop._should_accumulate()  # pyright: ignore[reportPrivateUsage]
    log_every_n_steps = cast("int", trainer.log_every_n_steps)  # pyright: ignore[reportAttributeAccessIssue]
    # the loggers' own count, which Lightning goes by, and which is one too high after some resumes
    logged = trainer.fit_loop.epoch_loop._batches_that_stepped  # pyright: ignore[reportPrivateUsage]
    return not accumulating and (logged + 1) % log_every_n_steps == 0
