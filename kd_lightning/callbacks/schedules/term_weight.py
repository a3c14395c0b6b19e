"""A schedule for the weight of a term."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.schedules.base import ScheduledCallback, find_terms
from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.term import Term


class TermWeightSchedule(ScheduledCallback):
    """Set the weight of one loss term by a schedule, such as ``Linear`` or ``PiecewiseConstant``.

    The schedule's value replaces the weight that the term was built with, and the last value stays after the fit.

    Args:
        term: The term's name.
        schedule: The schedule of the weight.
        unit: The unit of the schedule's t: ``step`` (optimizer steps) or ``epoch``.

    Raises:
        UsageError: At the start of the fit: there is no such term.

    Example:
        >>> from kd_lightning.callbacks import Linear, PiecewiseConstant
        >>> warm_up = TermWeightSchedule("kd", Linear(0.0, 0.9, duration=20), unit="epoch")
        >>> stop = TermWeightSchedule("hint", PiecewiseConstant({0: 100.0, 30: 0.0}), unit="epoch")
    """

    def __init__(self, term: str, schedule: Schedule, unit: Literal["step", "epoch"] = "step") -> None:
        super().__init__(schedule, unit)
        self.term = term
        self._terms: list[Term] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the terms of that name."""
        self._terms = find_terms(pl_module, self.term)[self.term]

    def apply(self, value: float) -> None:
        """Set the weight of these terms."""
        for term in self._terms:
            term.weight = value
