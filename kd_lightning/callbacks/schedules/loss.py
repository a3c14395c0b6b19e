"""A number of a loss that changes while the student learns."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.schedules.base import Scheduled, find_terms
from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.errors import UsageError


class LossSchedule(Scheduled):
    """Moves one number of a term's loss, by its name: the factor on the teacher's logits, the strength of a reversal.

    It is set at the start of each batch, in losses within losses as well. When the fit ends the last value stays. For
    temperatures there is `TemperatureSchedule`, for weights `TermWeightSchedule`.

    Args:
        term: The term's name.
        number: The name of the number, as the loss is built with it.
        schedule: Gives its value.
        unit: Whether the schedule counts optimizer steps or epochs.

    Raises:
        UsageError: At the start of the fit: there is no such term, or its loss has no such number.

    Example:
        >>> from kd_lightning.callbacks import Cosine, Linear
        >>> annealed = LossSchedule("logits", "teacher_scale", Linear(0.1, 1.0, duration=9), unit="epoch")
        >>> easy_to_hard = LossSchedule("kd", "reversal", Cosine(0.0, 1.0, duration=10), unit="epoch")
    """

    def __init__(self, term: str, number: str, schedule: Schedule, unit: Literal["step", "epoch"] = "step") -> None:
        super().__init__(schedule, unit)
        self.term = term
        self.number = number
        self._losses: list[nn.Module] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the losses."""
        losses = [module for term in find_terms(pl_module, self.term)[self.term] for module in term.loss.modules()]
        self._losses = [loss for loss in losses if self.number in _numbers(loss)]
        if not self._losses:
            there = sorted({number for loss in losses for number in _numbers(loss)})
            raise UsageError(
                f"the loss of {self.term} has no {self.number!r} to schedule; its numbers: {', '.join(there) or 'none'}"
            )

    def apply(self, value: float) -> None:
        """Sets the number."""
        for loss in self._losses:
            setattr(loss, self.number, value)


def _numbers(module: nn.Module) -> list[str]:
    """The names of a module's own public numbers."""
    return [name for name, value in vars(module).items() if type(value) in (int, float) and not name.startswith("_")]
