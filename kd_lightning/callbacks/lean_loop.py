"""Little around the steps at which nothing is due."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.lean_epoch import lean, refusal, stock

log = logging.getLogger(__name__)


class LeanLoop(Callback):
    """Runs the steps at which nothing is due through a leaner loop, bit for bit equal to Lightning's own.

    Lightning makes about a thousand Python calls around a step, most of which find that there is nothing to do. Between
    the steps at which a log, a validation, a checkpoint or a movement of the bar is due, this loop makes only the calls
    that do something: every hook that is overridden is called, with its arguments and in its order, and weights,
    optimizer, counters, checkpoints and events are the same. It works for any LightningModule under automatic
    optimization, on one device or with DistributedDataParallel, in ``32-true``, ``64-true`` and ``bf16-mixed``, with
    gradient clipping, accumulation and schedulers. Whatever it does not understand runs through Lightning's own loop,
    and `reason` and a line in the log say why.

    Args:
        enabled: Off, every step is Lightning's own: to compare, or because the command line has a lean loop by default.

    Example:
        >>> trainer = Trainer(callbacks=[LeanLoop()], logger=False, enable_checkpointing=False)
    """

    reason: str | None = None
    """Why every step of the last fit was Lightning's own; None where it was not."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the trainer, which is complete now."""
        self.reason = refusal(trainer) if self.enabled else "it is not enabled"
        if self.reason is None:
            lean(trainer)
        elif trainer.is_global_zero:
            log.info(f"LeanLoop: every step is Lightning's own: {self.reason}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the trainer its loop back."""
        stock(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives it back when the fit fails, too."""
        stock(trainer)
