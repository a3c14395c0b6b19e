"""The base class of callbacks that follow a schedule, and how they find the terms of a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose
from kd_lightning.core.progress import epoch, optimizer_step
from kd_lightning.core.term import Term


class ScheduledCallback(Callback, ABC):
    """Apply a schedule's value at the start of each batch; a subclass defines where in `apply`.

    The value is a function of the trainer's count of steps or epochs, so that there is no state to save and every
    resume is exact.

    Args:
        schedule: The schedule of the value.
        unit: The unit of the schedule's t: ``step`` (optimizer steps) or ``epoch``.

    Raises:
        UsageError: There is no such unit.
    """

    changes_step = True

    def __init__(self, schedule: Schedule, unit: Literal["step", "epoch"] = "step") -> None:
        if unit not in ("step", "epoch"):
            raise UsageError(f"unit={unit!r} is neither 'step' nor 'epoch'")
        self.schedule = schedule
        self.unit = unit

    @abstractmethod
    def apply(self, value: float) -> None:
        """Set the scheduled value."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Apply the value of this step or epoch; not every resume calls ``on_train_epoch_start``."""
        self.apply(self.schedule(optimizer_step(trainer) if self.unit == "step" else epoch(trainer)))


def find_terms(module: nn.Module, name: str | None) -> dict[str, list[Term]]:
    """Find the terms of a module, a list by name because several submodules may have terms of the same name.

    Args:
        module: The module.
        name: The name of the terms to find; None for all.

    Raises:
        UsageError: There is none (the nearest names are given).
    """
    found: dict[str, list[Term]] = {}
    for path, candidate in module.named_modules():
        if isinstance(candidate, Term):
            found.setdefault(path.rpartition(".")[2], []).append(candidate)
    if not found:
        raise UsageError(f"{type(module).__name__} has no terms to schedule: remove the schedule, or give it terms")
    if name is None:
        return found
    return {name: found[choose(name, found, "there is no term {name} to schedule")]}
