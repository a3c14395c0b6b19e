"""Schedules: pure functions of t, which a callback counts in optimizer steps or in epochs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from kd_lightning.core.errors import UsageError


@dataclass(frozen=True)
class Schedule(ABC):
    """The base class of schedules: a value for every t = 0, 1, 2, ..., without state, so that resumes are exact.

    Raises:
        UsageError: A value is not finite.
    """

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.extremes())):
            raise UsageError(f"{self} would give values that are not finite numbers: change them")

    @abstractmethod
    def __call__(self, t: int) -> float:
        """Return the value at t."""

    @abstractmethod
    def extremes(self) -> Collection[float]:
        """Return values between which all values of the schedule lie."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every t.

    Args:
        value: The value.

    Example:
        >>> Constant(4.0)(1000)
        4.0
    """

    value: float

    def __call__(self, t: int) -> float:
        """Return the value at any t."""
        return self.value

    def extremes(self) -> Collection[float]:
        """Return the only value."""
        return (self.value,)


@dataclass(frozen=True)
class Transition(Schedule, ABC):
    """The base class of schedules that lead from `start` at t = 0 to `end` from t = `duration` on.

    Args:
        start: The value at t = 0.
        end: The value from t = `duration` on.
        duration: The length of the transition, in units of t.

    Raises:
        UsageError: `duration` is below 1, or as for `Schedule`.
    """

    start: float
    end: float
    duration: int

    def __post_init__(self) -> None:
        _check_duration(self, self.duration)
        super().__post_init__()

    def extremes(self) -> Collection[float]:
        """Return the values at both ends."""
        return (self.start, self.end)


@dataclass(frozen=True)
class Linear(Transition):
    """A straight line from `start` to `end`, constant afterwards.

    Args:
        start: The value at t = 0.
        end: The value from t = `duration` on.
        duration: The length of the transition, in units of t.

    Example:
        >>> [Linear(9.0, 1.0, duration=4)(t) for t in range(6)]
        [9.0, 7.0, 5.0, 3.0, 1.0, 1.0]
    """

    def __call__(self, t: int) -> float:
        """Return the value at t."""
        done = _share(t, self.duration)
        return self.start * (1 - done) + self.end * done


@dataclass(frozen=True)
class Cosine(Transition):
    """Half a cosine from `start` to `end`, slow at both ends, constant afterwards.

    end + (start - end) (1 + cos(pi t / duration)) / 2

    Args:
        start: The value at t = 0.
        end: The value from t = `duration` on.
        duration: The length of the transition, in units of t.

    Example:
        >>> [round(Cosine(8.0, 0.0, duration=4)(t), 3) for t in range(6)]
        [8.0, 6.828, 4.0, 1.172, 0.0, 0.0]
    """

    def __call__(self, t: int) -> float:
        """Return the value at t."""
        left = (1 + math.cos(math.pi * _share(t, self.duration))) / 2
        return self.start * left + self.end * (1 - left)


@dataclass(frozen=True)
class Exponential(Transition):
    """A constant factor per t from `start` to `end`, constant afterwards.

    start (end / start)^(t / duration)

    Args:
        start: The value at t = 0, above 0.
        end: The value from t = `duration` on, above 0.
        duration: The length of the transition, in units of t.

    Raises:
        UsageError: An end is not above 0, or as for `Transition`.

    Example:
        >>> [Exponential(16.0, 1.0, duration=4)(t) for t in range(6)]
        [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.start, self.end) <= 0:
            raise UsageError(f"{self} has an end that is not above 0, which no factor leads to: use Linear or Cosine")

    def __call__(self, t: int) -> float:
        """Return the value at t."""
        done = _share(t, self.duration)
        return self.start ** (1 - done) * self.end**done


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """A constant value from each boundary to the next.

    Args:
        values: The values by their boundaries in t, the first of which is 0.

    Raises:
        UsageError: There is no boundary 0, or one below it, or as for `Schedule`.

    Example:
        >>> [PiecewiseConstant({0: 1.0, 2: 0.5, 3: 0.0})(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    values: dict[int, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.values, default=None) != 0:
            raise UsageError(f"{self} has no value at t = 0: its first boundary must be 0")

    def __call__(self, t: int) -> float:
        """Return the value at t."""
        return self.values[max(boundary for boundary in self.values if boundary <= t)]

    def extremes(self) -> Collection[float]:
        """Return the values of all intervals."""
        return self.values.values()


@dataclass(frozen=True)
class SigmoidRampUp(Schedule):
    """A slow rise from 0.7 % of `value` to `value`, constant afterwards.

    value exp(-5 (1 - min(t, duration) / duration)^2)

    Samuli Laine, Timo Aila: Temporal Ensembling for Semi-Supervised Learning. ICLR, 2017 (arXiv:1610.02242). Online
    distillation (ONE, FFL, OKDDip) ramps up the weight of its distillation term by it over 80 epochs.

    Args:
        value: The value from t = `duration` on; at t = 0 it is 0.7 % of that.
        duration: The length of the transition, in units of t.

    Example:
        >>> [round(SigmoidRampUp(1.0, duration=2)(t), 4) for t in range(4)]
        [0.0067, 0.2865, 1.0, 1.0]
    """

    value: float
    duration: int

    def __post_init__(self) -> None:
        _check_duration(self, self.duration)
        super().__post_init__()

    def __call__(self, t: int) -> float:
        """Return the value at t."""
        return self.value * math.exp(-5 * (1 - _share(t, self.duration)) ** 2)

    def extremes(self) -> Collection[float]:
        """Return the values at both ends."""
        return (self(0), self.value)


def _check_duration(schedule: Schedule, duration: int) -> None:
    if duration < 1:
        raise UsageError(f"duration={duration} of {schedule} must be at least 1")


def _share(t: int, duration: int) -> float:
    """Return how much of the duration has passed at t, in [0, 1]."""
    return min(t / duration, 1.0)
