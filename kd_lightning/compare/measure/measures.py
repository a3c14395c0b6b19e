"""The numbers that the report shows: measures of a result, with their names and formats, and costs of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict


@dataclass(frozen=True)
class Measure:
    """A number of every result: its key, its name and its format."""

    key: str
    name: str
    digits: int | None = None
    """Digits after the decimal point; None for four significant digits."""
    is_percentage: bool = False
    """The stored number is a share in [0, 1]; tables have it in %."""

    @property
    def heading(self) -> str:
        """The head of a table's column."""
        return f"{self.name}, %" if self.is_percentage else self.name

    @property
    def unit(self) -> str:
        """The unit of a difference: points of a percentage, or the measure's name."""
        return "points" if self.is_percentage else self.name

    def stored(self, result: Mapping[str, Any]) -> float | None:
        """Return the number as a result stores it; None where the result has none."""
        return result.get("metrics", {}).get(self.key, result.get(self.key))

    def value(self, result: Mapping[str, Any]) -> float | None:
        """Return the number in the unit that is shown; None where the result has none."""
        stored = self.stored(result)
        return stored if stored is None else self.scale * stored

    @property
    def scale(self) -> float:
        """The factor from the stored number to the number that is shown."""
        return 100.0 if self.is_percentage else 1.0

    def text(self, value: float) -> str:
        """Format a number in the unit that is shown; ``-`` for NaN."""
        if math.isnan(value):
            return "-"
        if self.digits is None:
            return f"{value:.4g}"
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0 makes 0 of -0

    def signed(self, value: float) -> str:
        """Format a difference in the unit that is shown, with its sign."""
        return f"{value:+.4g}" if self.digits is None else f"{value:+.{self.digits}f}"


ACCURACY = Measure("accuracy", "accuracy", 2, is_percentage=True)
ERRORS = Measure("errors", "errors", 1)
TRAIN_ACCURACY = Measure("train_accuracy", "train", 2, is_percentage=True)
NLL = Measure("nll", "NLL", 4)
ECE = Measure("calibration_error", "ECE", 2, is_percentage=True)
SECONDS = Measure("seconds", "seconds", 1)
CLASS_MEASURES = (
    ACCURACY,
    ERRORS,
    TRAIN_ACCURACY,
    NLL,
    ECE,
    Measure("agreement", "agreement", 2, is_percentage=True),
    Measure("divergence", "KL", 4),
)
"""The measures of class labels, in the order of their columns."""
KNOWN = {measure.key: measure for measure in (*CLASS_MEASURES, SECONDS)}
_KEYS = {"acc": ACCURACY.key}


def measure_key(metric: str) -> str:
    """Return the key in a result of a learner's metric, which may end with ``/<loader>``.

    Example:
        >>> measure_key("acc"), measure_key("acc/letters"), measure_key("mse")
        ('accuracy', 'accuracy/letters', 'mse')
    """
    name, slash, loader = metric.partition("/")
    return _KEYS.get(name, name) + slash + loader


def metric_name(key: str) -> str:
    """Return the learner's name of a measure: the inverse of `measure_key`.

    Example:
        >>> metric_name("accuracy/letters"), metric_name("mse")
        ('acc/letters', 'mse')
    """
    name, slash, loader = key.partition("/")
    return {key: metric for metric, key in _KEYS.items()}.get(name, name) + slash + loader


def measure_of(key: str) -> Measure:
    """Return the measure of a key, with the name and format of a known one.

    Example:
        >>> measure_of("accuracy/letters").heading, measure_of("mse").text(0.123456)
        ('accuracy (letters), %', '0.1235')
    """
    name, _, loader = key.partition("/")
    known = KNOWN.get(name, Measure(name, name))
    return replace(known, key=key, name=f"{known.name} ({loader})") if loader else known


class NetworkStats(TypedDict):
    """The costs of a network; None where its input is not one tensor of samples."""

    name: str
    parameters: int
    bytes: int
    flops: int | None
    latency_1_ms: float | None
    latency_64_ms: float | None
