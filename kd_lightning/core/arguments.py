"""Arguments that cannot be meant: what static types would tell is told at construction as well, in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from kd_lightning.core.errors import UsageError


def check_is_network(network: Any, name: str) -> None:
    """Check that an argument of a scheme is a network.

    Raises:
        UsageError: It is something else.

    Example:
        >>> check_is_network(None, "teacher")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: teacher is None, not a network: give an nn.Module, such as ...
    """
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{name} is {describe(network)}, not a network: give an nn.Module, such as one of torchvision or "
            "kd_lightning.networks"
        )


def check_builders(optimizer: Any, lr_scheduler: Any, lr_interval: Any) -> None:
    """Check that a learner's optimizer and scheduler are not built yet, and when the scheduler steps.

    Raises:
        UsageError: One cannot be called, or the interval is none.

    Example:
        >>> check_builders(0.1, None, "epoch")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: optimizer is a float, and each fit builds its own: give a class or ...
    """
    for name, builder, example in (
        ("optimizer", optimizer, "partial(torch.optim.SGD, lr=0.1)"),
        ("lr_scheduler", lr_scheduler, "partial(torch.optim.lr_scheduler.StepLR, step_size=10)"),
    ):
        if builder is not None and not callable(builder):
            raise UsageError(
                f"{name} is {describe(builder)}, and each fit builds its own: give a class or function, e.g. {example}"
            )
    if lr_interval not in ("step", "epoch"):
        raise UsageError(f"lr_interval={lr_interval!r} is neither 'step' nor 'epoch'")


def check_mapping(value: Any, name: str, example: str) -> None:
    """Check that an argument is a mapping, or an ``nn.ModuleDict``.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(value, Mapping | nn.ModuleDict):
        raise UsageError(f"{name} is {describe(value)}: give a dict with a name for each, e.g. {name}={example}")


def is_finite_number(value: Any) -> bool:
    """Tell if a value is a number that is finite.

    Example:
        >>> is_finite_number(4), is_finite_number("4"), is_finite_number(float("nan"))
        (True, False, False)
    """
    return isinstance(value, int | float) and math.isfinite(value)


def describe(value: Any) -> str:
    """Describe a wrong argument in two or three words.

    Example:
        >>> describe(None), describe("resnet18"), describe([])
        ('None', "'resnet18'", 'a list')
    """
    if value is None:
        return "None"
    return repr(value) if isinstance(value, str) and len(value) < 40 else f"a {type(value).__name__}"
