"""Declarations for the shared tests: how a loss is built and called, in the `CASES` of its own test file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Shapes = Shape | list[Shape]
"""The shape of one layer, or of each of several."""


def classes() -> Tensor:
    """Class indices (6,) below 10."""
    return torch.randint(10, (6,), generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Case:
    """How a loss differs from one on logits (6, 10) without required arguments; all batches have six samples."""

    build: Callable[..., nn.Module] | None = None
    """Builds a new loss in float32, with weights that do not depend on earlier tests and with the `temperature` as an
    argument, if it has one. The class itself if not given."""
    student: Shapes = (6, 10)
    teacher: Shapes = (6, 10)
    target: Callable[[], Any] = classes
    """The label, or the list of labels."""
    minimum: Literal["zero", "not zero", "elsewhere"] = "zero"
    """The loss at its minimum, where the student equals the teacher; "elsewhere" if the minimum is not there (for
    example after a connector). Used only where both have one shape."""
    kinked: bool = False
    """Its gradient is discontinuous (an absolute value, a hinge), so that rounding can decide it."""
    constants: bool = False
    """A part of its value, such as a sample's weight, is computed from its inputs without a gradient on purpose; its
    own test must check the gradient."""
    random: bool = False
    """It draws random numbers from torch's generator; the shared tests seed it before each call."""
    limits: Mapping[torch.dtype, float] = field(default_factory=dict)
    """The largest magnitude of features whose loss and gradient the dtype can represent, if below 1e4."""
    hottest: float = 1000.0
    """The highest temperature at which it is tested; a lower one needs a comment with the reason."""
    tolerance: float = 1e-3
    """Tolerance of value and gradient in float32 against float64, relative above 1; a larger one needs a reason."""
    alone: bool = False
    """It uses neither teacher nor label: it is a function of one network's values."""
    samples: bool = True
    """Its inputs have a row for each sample; false for parameters."""
    splits_teachers: bool = False
    """It passes each of several teachers to a separate loss, whose messages have the shape of that teacher alone."""
    wrong: Sequence[tuple[Shapes, Shapes]] = ()
    """Shapes of student and teacher that must raise an error with both shapes and the remedy, in one line."""


def other_implementation(module: str) -> Any:
    """Import a library that implements the same formula, or skip; `make test-all` installs it."""
    return pytest.importorskip(module, reason=f"{module} is not installed: `make test-all` installs it")
