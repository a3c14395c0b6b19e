"""How the shared harness calls a loss: each test file of a loss may say so in its `CASES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Shapes = Shape | list[Shape]
"""Of one layer, or of each of several."""


def classes() -> Tensor:
    """Class indices (6,) below 10."""
    return torch.randint(10, (6,), generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Case:
    """What differs from a loss on logits (6, 10) that is built without arguments; batches are always of six."""

    build: Callable[..., nn.Module] | None = None
    """A fresh loss, in float32, whose first weights do not depend on what ran before; of its `temperature`, if it has
    one. The class itself if not given."""
    student: Shapes = (6, 10)
    teacher: Shapes = (6, 10)
    target: Callable[[], Any] = classes
    """The label, or the list of labels."""
    minimum: Literal["zero", "not zero", "elsewhere"] = "zero"
    """What the loss is at its least, where the student equals the teacher; elsewhere if it is not least there (behind a
    connector, for example). Looked at only where both have one shape."""
    kinked: bool = False
    """Its gradient jumps (an absolute value, a hinge), so that rounding decides it somewhere."""
    constants: bool = False
    """A part of its value, such as a sample's weight, is computed from what it compares and has no gradient on purpose:
    its own test must say what the gradient is."""
    random: bool = False
    """It draws numbers from torch's generator; the harness seeds it before each call."""
    limits: Mapping[torch.dtype, float] = field(default_factory=dict)
    """The largest magnitude of features whose loss and gradient the dtype can hold, where that is below 1e4."""
    hottest: float = 1000.0
    """The highest temperature that it is held to; say why where it is lower."""
    tolerance: float = 1e-3
    """Of value and gradient in float32 against float64, relative above 1; say why where it is larger."""
    alone: bool = False
    """It looks at neither teacher nor label: it says of an input what one network makes of it."""
    samples: bool = True
    """What it compares has a row for each sample, and is no parameter."""
    splits_teachers: bool = False
    """It gives each of several teachers to a loss of its own, whose messages show the shape of that teacher alone."""
    wrong: Sequence[tuple[Shapes, Shapes]] = ()
    """Student's and teacher's shapes that must be refused with both shapes and the remedy, in one line."""


def other_implementation(module: str) -> Any:
    """A library that implements the same formula; `make test-all` installs it."""
    return pytest.importorskip(module, reason=f"{module} is not installed: `make test-all` installs it")
