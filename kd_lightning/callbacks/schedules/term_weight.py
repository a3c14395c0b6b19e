"""A term that counts more, or less, while the student learns."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.schedules.base import Scheduled, find_terms
from kd_lightning.callbacks.schedules.functions import Schedule
from kd_lightning.core.terms import Term


class TermWeightSchedule(Scheduled):
    """Set the weight of one loss term by a schedule, such as ``Linear`` or ``PiecewiseConstant``.

    The schedule's value *is* the weight, whatever the term was built with. When the fit ends the last one stays.

    Args:
        term: The term's name.
        schedule: Gives the weight.
        unit: Whether the schedule counts optimizer steps or epochs.

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
        """Finds the term."""
        self._terms = find_terms(pl_module, self.term)[self.term]

    def apply(self, value: float) -> None:
        """Sets the weight."""
        for term in self._terms:
            term.weight = value
