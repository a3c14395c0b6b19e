"""Losses of synthetic images, which all schemes without data share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.terms import Terms


def evaluate_terms(
    terms: Terms,
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: dict[str, Tensor],
    layers: Iterable[str] = (),
) -> tuple[dict[str, Tensor], Activations]:
    """Compute the unweighted losses of images, and the teacher's activations, of `layers` as well.

    The student is not run where no term compares it.
    """
    of_teacher = tap(teacher, images, dict.fromkeys([*terms.layers("teacher"), *layers]))
    compared = terms.layers("student")
    of_student = tap(student, images, compared) if compared else {}
    return {name: term(of_student, of_teacher, labels) for name, term in terms.all().items()}, of_teacher
