"""Synthetic inputs and the losses of terms on them: what schemes without data share."""

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
    theirs = tap(teacher, images, dict.fromkeys([*terms.layers("teacher"), *layers]))
    wanted = terms.layers("student")
    ours = tap(student, images, wanted) if wanted else {}
    return {name: term(ours, theirs, labels) for name, term in terms.all().items()}, theirs
