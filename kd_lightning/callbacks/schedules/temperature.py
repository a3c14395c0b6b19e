"""A schedule for temperatures."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from kd_lightning.callbacks.schedules.base import ScheduledCallback, find_terms
from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.errors import UsageError
from kd_lightning.losses.common.checks import check_temperature


class TemperatureSchedule(ScheduledCallback):
    """Set the temperature of every loss that has one, or of one term's loss, by a schedule.

    It is set at the start of each batch, in losses within losses as well, and keeps its last value after the fit. A
    learned temperature (a parameter) is not changed.

    Args:
        schedule: The schedule of the temperature; each value must be above 0.
        unit: The unit of the schedule's t: ``step`` (optimizer steps) or ``epoch``.
        term: The name of the term to schedule; all terms by default.

    Raises:
        UsageError: A value is not above 0; at the start of the fit: there is no such term, or no temperature.

    Example:
        >>> from kd_lightning.callbacks import Linear
        >>> callback = TemperatureSchedule(Linear(8.0, 1.0, duration=20), unit="epoch", term="kd")
    """

    def __init__(self, schedule: Schedule, unit: Literal["step", "epoch"] = "step", term: str | None = None) -> None:
        super().__init__(schedule, unit)
        for value in schedule.extremes():
            check_temperature(value, name=f"{schedule} is no schedule of temperatures: temperature")
        self.term = term
        self._losses: list[Any] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the losses that have a temperature."""
        found = find_terms(pl_module, self.term)
        inside = [module for terms in found.values() for term in terms for module in term.loss.modules()]
        self._losses = [module for module in inside if _has_temperature(module)]
        if not self._losses:
            raise UsageError(
                f"no loss of {', '.join(found)} has a temperature: name another term, or remove the schedule"
            )

    def apply(self, value: float) -> None:
        """Set the temperature of every loss found."""
        for loss in self._losses:
            loss.temperature = value


def _has_temperature(module: nn.Module) -> bool:
    return isinstance(getattr(module, "temperature", None), int | float)
