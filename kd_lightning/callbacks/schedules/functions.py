"""How a number changes with time: pure functions of t, which a callback counts in optimizer steps or in epochs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from kd_lightning.core.errors import UsageError


@dataclass(frozen=True)
class Schedule(ABC):
    """A number for every t = 0, 1, 2, ...; nothing is remembered, so that a resumed run goes on as it was.

    Raises:
        UsageError: A value that it could give is not finite, or its duration is below 1.
    """

    def __post_init__(self) -> None:
        if (duration := getattr(self, "duration", 1)) < 1:
            raise UsageError(f"duration={duration} of {self} must be at least 1")
        if not all(map(math.isfinite, self.extremes())):
            raise UsageError(f"{self} would give values that are not finite numbers: change them")

    @abstractmethod
    def __call__(self, t: int) -> float:
        """The value at t."""

    @abstractmethod
    def extremes(self) -> Collection[float]:
        """Values that all others lie between."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Always the same.

    Args:
        value: What it is.

    Example:
        >>> Constant(4.0)(1000)
        4.0
    """

    value: float

    def __call__(self, t: int) -> float:
        """The value."""
        return self.value

    def extremes(self) -> Collection[float]:
        """The value."""
        return (self.value,)


@dataclass(frozen=True)
class Linear(Schedule):
    """In a straight line from `start` to `end`, where it stays.

    Args:
        start: The value at t = 0.
        end: The value from t = `duration` on.
        duration: How long it takes.

    Example:
        >>> [Linear(9.0, 1.0, duration=4)(t) for t in range(6)]
        [9.0, 7.0, 5.0, 3.0, 1.0, 1.0]
    """

    start: float
    end: float
    duration: int

    def __call__(self, t: int) -> float:
        """The value at t."""
        done = _share(t, self.duration)
        return self.start * (1 - done) + self.end * done

    def extremes(self) -> Collection[float]:
        """Both ends."""
        return (self.start, self.end)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Along half a cosine from `start` to `end`, where it stays: slow at both ends.

    end + (start - end) (1 + cos(pi t / duration)) / 2

    Args:
        start: The value at t = 0.
        end: The value from t = `duration` on.
        duration: How long it takes.

    Example:
        >>> [round(Cosine(8.0, 0.0, duration=4)(t), 3) for t in range(6)]
        [8.0, 6.828, 4.0, 1.172, 0.0, 0.0]
    """

    start: float
    end: float
    duration: int

    def __call__(self, t: int) -> float:
        """The value at t."""
        left = (1 + math.cos(math.pi * _share(t, self.duration))) / 2
        return self.start * left + self.end * (1 - left)

    def extremes(self) -> Collection[float]:
        """Both ends."""
        return (self.start, self.end)


@dataclass(frozen=True)
class Exponential(Schedule):
    """From `start` to `end`, where it stays, by the same factor at every t.

    start (end / start)^(t / duration)

    Args:
        start: The value at t = 0, above 0.
        end: The value from t = `duration` on, above 0.
        duration: How long it takes.

    Raises:
        UsageError: An end is not above 0, or as for `Schedule`.

    Example:
        >>> [Exponential(16.0, 1.0, duration=4)(t) for t in range(6)]
        [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    """

    start: float
    end: float
    duration: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.start, self.end) <= 0:
            raise UsageError(f"{self} has an end that is not above 0: no factor leads there, use Linear or Cosine")

    def __call__(self, t: int) -> float:
        """The value at t."""
        done = _share(t, self.duration)
        return self.start ** (1 - done) * self.end**done

    def extremes(self) -> Collection[float]:
        """Both ends."""
        return (self.start, self.end)


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """A value from each boundary on, until the next.

    Args:
        values: Value by boundary; one of the boundaries is 0.

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
            raise UsageError(f"{self} does not say what holds from the start: its first boundary must be 0")

    def __call__(self, t: int) -> float:
        """The value at t."""
        return self.values[max(boundary for boundary in self.values if boundary <= t)]

    def extremes(self) -> Collection[float]:
        """All values."""
        return self.values.values()


@dataclass(frozen=True)
class SigmoidRampUp(Schedule):
    """A slow start up to `value`, where it stays.

    value exp(-5 (1 - min(t, duration) / duration)^2)

    Samuli Laine, Timo Aila: Temporal Ensembling for Semi-Supervised Learning. ICLR, 2017 (arXiv:1610.02242). Online
    distillation (ONE, FFL, OKDDip) raises the weight of its distillation term by it over 80 epochs.

    Args:
        value: What it comes to; at t = 0 it is 0.7 % of that.
        duration: How long it takes.

    Example:
        >>> [round(SigmoidRampUp(1.0, duration=2)(t), 4) for t in range(4)]
        [0.0067, 0.2865, 1.0, 1.0]
    """

    value: float
    duration: int

    def __call__(self, t: int) -> float:
        """The value at t."""
        return self.value * math.exp(-5 * (1 - _share(t, self.duration)) ** 2)

    def extremes(self) -> Collection[float]:
        """Where it starts and where it ends."""
        return (self(0), self.value)


def _share(t: int, duration: int) -> float:
    return min(t / duration, 1.0)
