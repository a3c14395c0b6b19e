"""Which optimizer step this is: one answer for every scheme, whatever the number of its optimizers."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import Trainer


def optimizer_step(trainer: Trainer) -> int:
    """Steps finished so far, counted once a batch that stepped: loggers' x axis, kept in checkpoints.

    ``trainer.global_step`` counts each optimizer's step, so that with two optimizers it runs twice as fast. Gradient
    accumulation counts once for each accumulated group.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # pyright: ignore[reportPrivateUsage]


def log_is_due(trainer: Trainer) -> bool:
    """True in the steps whose metrics the loggers will keep: logging in any other is work thrown away."""
    accumulating = trainer.fit_loop._should_accumulate()  # pyright: ignore[reportPrivateUsage]
    log_every_n_steps = cast("int", trainer.log_every_n_steps)  # pyright: ignore[reportAttributeAccessIssue]
    return not accumulating and (optimizer_step(trainer) + 1) % log_every_n_steps == 0
