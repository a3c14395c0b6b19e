"""A schedule for any number of a loss."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.schedules.base import ScheduledCallback, find_terms
from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.errors import UsageError


class LossSchedule(ScheduledCallback):
    """Set one number of a term's loss by a schedule, such as the factor on the teacher's logits.

    It is set at the start of each batch, in losses within losses as well, and keeps its last value after the fit. For
    temperatures there is `TemperatureSchedule`, for weights `TermWeightSchedule`.

    Args:
        term: The term's name.
        attribute: The name of the number, an attribute of the loss.
        schedule: The schedule of its value.
        unit: The unit of the schedule's t: ``step`` (optimizer steps) or ``epoch``.

    Raises:
        UsageError: At the start of the fit: there is no such term, or its loss has no such number.

    Example:
        >>> from kd_lightning.callbacks import Cosine, Linear
        >>> annealed = LossSchedule("logits", "teacher_scale", Linear(0.1, 1.0, duration=9), unit="epoch")
        >>> easy_to_hard = LossSchedule("kd", "reversal", Cosine(0.0, 1.0, duration=10), unit="epoch")
    """

    def __init__(self, term: str, attribute: str, schedule: Schedule, unit: Literal["step", "epoch"] = "step") -> None:
        super().__init__(schedule, unit)
        self.term = term
        self.attribute = attribute
        self._losses: list[nn.Module] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the losses that have the number."""
        losses = [module for term in find_terms(pl_module, self.term)[self.term] for module in term.loss.modules()]
        self._losses = [loss for loss in losses if self.attribute in _numbers(loss)]
        if not self._losses:
            numbers = sorted({number for loss in losses for number in _numbers(loss)})
            has = ", ".join(numbers) or "no numbers"
            raise UsageError(f"the loss of {self.term} has no {self.attribute!r} to schedule; it has {has}")

    def apply(self, value: float) -> None:
        """Set the number in every loss that has it."""
        for loss in self._losses:
            setattr(loss, self.attribute, value)


def _numbers(module: nn.Module) -> list[str]:
    """List the names of the public numbers among a module's attributes."""
    return [name for name, value in vars(module).items() if type(value) in (int, float) and not name.startswith("_")]
