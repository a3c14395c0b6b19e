"""What every loss refuses, said once."""

from __future__ import annotations

import math

from torch import Tensor


def check_temperature(temperature: float, name: str = "temperature") -> float:
    """Returns `temperature`; a ValueError unless it is finite and above zero."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{name}={temperature} must be a finite number above 0, e.g. 4.0")
    return temperature


def check_fraction(value: float, name: str) -> float:
    """Returns `value`; a ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1]")
    return value


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """A ValueError with both shapes unless both are (N, C), N >= 1 and C >= 2: a comparison never broadcasts."""
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[0] < 1 or student.shape[1] < 2:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must both be (N, C) with "
            "the same N >= 1 and C >= 2: give both networks the same num_classes and the same batch"
        )


def upcast(logits: Tensor) -> Tensor:
    """Half precision in float32, float64 as it is: softmax in half precision loses what distillation is about."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()
