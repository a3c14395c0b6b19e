"""Inputs that are made up, and what terms say of them: what schemes without data share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from kd_lightning.learner import Learner
from kd_lightning.taps import Activations, tap
from kd_lightning.terms import Term


def look(
    learner: Learner,
    teacher: nn.Module,
    terms: nn.ModuleDict,
    images: Tensor,
    labels: dict[str, Tensor],
    layers: Iterable[str] = (),
) -> tuple[dict[str, Tensor], Activations]:
    """The unweighted losses of images, and what the teacher gave, at `layers` as well.

    The student is not run where no term asks for it.
    """
    known = dict(cast("dict[str, Term]", terms).items())
    theirs = tap(teacher, images, dict.fromkeys([*learner.layers("teacher", known), *layers]))
    asked = any(term.student is not None for term in known.values())
    ours: Activations = tap(learner.student, images, learner.layers("student", known)) if asked else {}
    return {name: term(ours, theirs, labels) for name, term in known.items()}, theirs
