"""The value that a ReduceLROnPlateau follows."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kd_lightning.core.errors import UsageError


def plateau_monitor(scheduler: LRScheduler, interval: str) -> str | None:
    """Return the logged value that a ``ReduceLROnPlateau`` follows; None for any other scheduler.

    Lightning's own class has it as an argument, ``monitor``; torch's follows ``train/loss``, the mean over the epoch.

    Raises:
        UsageError: It is to be stepped at each step, or is torch's and follows what grows.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> plateau_monitor(ReduceLROnPlateau(optimizer), "epoch")
        'train/loss'
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return None
    if interval == "step":
        raise UsageError(
            "lr_interval='step' of a ReduceLROnPlateau: it follows a value of each epoch, so set lr_interval='epoch'"
        )
    monitor: str | None = getattr(scheduler, "monitor", None)
    if monitor is None and scheduler.mode != "min":
        raise UsageError(
            f"ReduceLROnPlateau(mode={scheduler.mode!r}) has no value to follow: use "
            "lightning.pytorch.cli.ReduceLROnPlateau with a monitor, such as 'val/acc'"
        )
    return monitor or "train/loss"


def scheduler_config(scheduler: LRScheduler, interval: str) -> dict[str, Any]:
    """Return Lightning's configuration of a scheduler, for ``configure_optimizers``."""
    config: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
    if (monitor := plateau_monitor(scheduler, interval)) is not None:
        config["monitor"] = monitor
    return config


def step_scheduler(scheduler: LRScheduler, interval: str, trainer: Trainer) -> None:
    """Step a scheduler, as Lightning does under automatic optimization, with the value that it follows.

    Raises:
        UsageError: Nothing logs the value.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
        return
    monitor = str(plateau_monitor(scheduler, interval))
    if monitor not in trainer.callback_metrics:
        known = ", ".join(trainer.callback_metrics) or "nothing"
        raise UsageError(f"ReduceLROnPlateau(monitor={monitor!r}) follows what nothing logs: monitor one of {known}")
    scheduler.step(trainer.callback_metrics[monitor])
