"""The base of callbacks that follow a schedule: when they act, and how they find the terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose
from kd_lightning.core.progress import epoch, optimizer_step
from kd_lightning.core.terms import Term


class Scheduled(Callback, ABC):
    """Applies a schedule's value at the start of each batch.

    The value is a function of the trainer's own count, so nothing is kept in a checkpoint and every resume is right.

    Args:
        schedule: Gives the value.
        unit: Whether the schedule's t counts optimizer steps or epochs.

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
        """Sets the value wherever it belongs."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Applies the value of this step or epoch: here, as not every resume calls ``on_train_epoch_start``."""
        self.apply(self.schedule(optimizer_step(trainer) if self.unit == "step" else epoch(trainer)))


def find_terms(module: nn.Module, name: str | None) -> dict[str, list[Term]]:
    """The terms in a module by their names, or those of one name; equal names may be in different places.

    Raises:
        UsageError: There is none (the nearest names are given).
    """
    found: dict[str, list[Term]] = {}
    for path, candidate in module.named_modules():
        if isinstance(candidate, Term):
            found.setdefault(path.rpartition(".")[2], []).append(candidate)
    if not found:
        raise UsageError(f"{type(module).__name__} has no terms whose schedule this could be: give it one")
    if name is None:
        return found
    return {name: found[choose(name, found, "there is no term {name} to follow a schedule")]}
