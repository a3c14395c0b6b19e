"""The error for every mistake that a user can correct."""

from __future__ import annotations

from typing import Literal


class UsageError(ValueError):
    """A setting, an input or a file cannot be used; the message names it, its value and the remedy in one line.

    The command line prints exactly these errors, and those of the operating system, without a traceback. Raise it in
    your own losses, schemes and callbacks for the same effect.

    Example:
        >>> raise UsageError("temperature=-1.0 must be a finite number above 0, e.g. 4.0")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: temperature=-1.0 must be a finite number above 0, e.g. 4.0
    """


class NonFiniteError(UsageError):
    """A loss, gradient, weight or output of a run is not finite: no file is written of its state."""


class InputRefusedError(UsageError):
    """A network cannot take its input: torch refuses its shape or its type."""


class OtherWeightsError(UsageError, RuntimeError):
    """Weights are of another scheme, or of other networks, than those that they are loaded into.

    It is a ``RuntimeError`` as well, which torch raises.
    """


class TooFewSamplesError(UsageError):
    """A loss that compares samples with each other gets too few of them."""


class WidthError(UsageError):
    """Features have another width than a loss was built for; a term adds the layer.

    Args:
        side: The side of the features.
        channels: Their width.
        expected: The width that the loss was built for.
        layer: Number of the layer, if there are several, from 0.
    """

    def __init__(self, side: Literal["student", "teacher"], channels: int, expected: int, layer: int = 0) -> None:
        super().__init__(
            f"{side} features have {channels} channels and the loss was built for {expected}: "
            f"set its {side}_channels to {channels}"
        )
        self.side = side
        self.channels = channels
        self.expected = expected
        self.layer = layer
