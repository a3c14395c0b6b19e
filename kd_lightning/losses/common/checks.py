"""Checks of shapes and arguments that the losses share; each raises a `UsageError` with the value and the remedy."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_lightning.core.arguments import is_finite_number
from kd_lightning.core.errors import TooFewSamplesError, UsageError, WidthError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6
"""Limits between which logits of any usual size, divided by the temperature, and its square are finite in float32."""


def check_temperature(temperature: float, name: str = "temperature") -> float:
    """Return `temperature` if it is above zero and computable, else raise a `UsageError` that names it `name`."""
    if not (is_finite_number(temperature) and temperature > 0):
        raise UsageError(f"{name}={temperature!r} must be a finite number above 0, e.g. 4.0")
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise UsageError(
            f"{name}={temperature} must lie between {LOWEST_TEMPERATURE:g} and {HIGHEST_TEMPERATURE:g}, e.g. 4.0: "
            "float32 holds no softmax or factor of it"
        )
    return temperature


def check_fraction(value: float, name: str) -> float:
    """Return `value` if it lies in [0, 1], else raise a `UsageError` that names it `name`."""
    if not (is_finite_number(value) and 0 <= value <= 1):
        raise UsageError(f"{name}={value!r} must lie in [0, 1], e.g. 0.5")
    return value


def check_not_negative(value: float, name: str) -> float:
    """Return `value` if it is finite and at least zero, else raise a `UsageError` that names it `name`."""
    if not (is_finite_number(value) and value >= 0):
        raise UsageError(f"{name}={value!r} must be a finite number, at least 0, e.g. 1.0")
    return value


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Check that both are logits (N, C) of one shape with N >= 1 and C >= 2; a comparison never broadcasts."""
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[0] < 1 or student.shape[1] < 2:
        if student.shape == teacher.shape and student.shape[1:] == (1,):
            raise UsageError(
                f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} are one output a "
                "sample, whose softmax is always 1: for the same networks use BernoulliKDLoss, if it is the logit of a "
                "binary label, or LogitMSELoss, if it is a real value"
            )
        raise UsageError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must both be (N, C) with "
            "the same N >= 1 and C >= 2: give both networks the same num_classes and the same batch"
        )


def check_outputs(student: Tensor, teacher: Tensor, what: str = "outputs") -> None:
    """Check that both are outputs (N,) or (N, C) of one shape, one output included; a comparison never broadcasts."""
    if student.shape != teacher.shape or student.dim() not in (1, 2) or not student.numel():
        raise UsageError(
            f"student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)} must both be (N, C) or "
            "(N,) with the same N >= 1 and C >= 1: give both networks the same number of outputs and the same batch"
        )


def check_one_side(logits: Tensor, at_least: int = 1) -> None:
    """Check that these are logits (N, C) with C >= 2 and N >= `at_least`."""
    if logits.dim() != 2 or len(logits) < at_least or logits.shape[1] < 2:
        raise UsageError(
            f"logits {tuple(logits.shape)} must be (N, C) with C >= 2 and N >= {at_least} samples: address logits, and "
            "use a batch that is large enough"
        )


def check_maps(student: Tensor, teacher: Tensor) -> None:
    """Check that both are feature maps (N, C, H, W) with the same N >= 1, and not empty."""
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher) or 0 in student.shape + teacher.shape:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be maps "
            "(N, C, H, W) with the same N >= 1: address convolutional layers"
        )


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Check that both are features (N, ...) of one shape, and not empty."""
    if student.shape != teacher.shape or student.dim() < 2 or not student.numel():
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must have the same "
            "shape (N, ...): address layers of one shape, or map the student's to the teacher's by a connector"
        )


def check_samples(student: Tensor, teacher: Tensor, at_least: int = 2) -> None:
    """Check that both are features (N, ...), not empty, with the same N >= `at_least`, to compare samples."""
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher) or 0 in student.shape + teacher.shape:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be (N, ...) "
            "with the same N: give both networks the same batch"
        )
    if len(student) < at_least:
        raise TooFewSamplesError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} have {len(student)} "
            f"sample, but the loss compares samples with each other: use batches of at least {at_least}"
        )


def check_width(features: Tensor, expected: int, side: Literal["student", "teacher"], layer: int = 0) -> None:
    """Check that features (N, C, ...) have the number of channels that the loss was built for; else a `WidthError`."""
    if features.dim() < 2 or features.shape[1] != expected:
        raise WidthError(side, features.shape[1] if features.dim() > 1 else 0, expected, layer)


def check_map_widths(
    student: Tensor, teacher: Tensor, student_channels: int, teacher_channels: int, layer: int = 0
) -> None:
    """Check that both are feature maps of the same N images, with the widths that the loss was built for."""
    check_maps(student, teacher)
    check_width(student, student_channels, "student", layer)
    check_width(teacher, teacher_channels, "teacher", layer)


def upcast(values: Tensor) -> Tensor:
    """Convert half precision to float32, and leave other types; softmax in half precision loses small probabilities."""
    return values if values.dtype.itemsize >= 4 else values.float()
