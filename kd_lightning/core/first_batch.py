"""Checks of the first batch of a fit: the tensors that a term compares, the teacher's outputs, and the labels.

Each check reads values, for which a GPU has to be waited for; `kd_lightning.core.terms.Terms` makes them once a fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.arguments import describe
from kd_lightning.core.errors import NonFiniteError, UsageError
from kd_lightning.core.label_kinds import are_distributions
from kd_lightning.core.loss import UNLABELED, loss_trait
from kd_lightning.core.term import Term, names

ENOUGH = 32
"""Labeled samples from which on a teacher's accuracy is compared with chance."""


def check_inputs_of(
    terms: Mapping[str, Term],
    student: Activations,
    teacher: Activations | None,
    labels: Mapping[str, Tensor],
    teacher_is_fixed: bool,
) -> None:
    """Check the terms' inputs in the first batch, before a loss is computed.

    A teacher that is no better than chance, or gives the same logits for every sample, may be meant, and so may a
    label that no term needs and that is no class: these are warnings.

    Args:
        terms: The terms of weight other than 0, by name.
        student: The student's activations.
        teacher: The teacher's.
        labels: The labels of the batch.
        teacher_is_fixed: The teacher is trained already; a peer or an averaged copy begins at chance.

    Raises:
        NonFiniteError: The teacher gives NaN or infinity where the student does not; a masked class is minus infinity.
        UsageError: A loss over classes gets probabilities for logits, or a label that is no class.
    """
    if teacher is not None and all(bool(value.isfinite().all()) for value in student.values()):
        for layer in dict.fromkeys(layer for term in terms.values() for layer in names(term.teacher)):
            if layer in teacher:
                _check_finite(layer, teacher[layer])
    for name, term in terms.items():
        _check_are_tensors(name, term, labels)
        if not is_over_classes(term.loss):
            continue
        _check_floating(name, term, student, teacher)
        if not loss_trait(term.loss, "takes_probabilities"):
            for side, outputs in _outputs_of(term, student, teacher):
                _check_logits(name, term, side, outputs)
        _check_classes(name, term, student, labels)
    if teacher_is_fixed and teacher is not None:
        _warn_of_weak_teacher(terms, teacher, labels)


def is_over_classes(loss: nn.Module) -> bool:
    """Tell if a loss compares distributions over classes that exclude each other."""
    return loss_trait(loss, "softmax_over_classes") or loss_trait(loss, "label_kind") == "classes"


def explained(
    name: str,
    term: Term,
    student: Activations,
    teacher: Activations | None,
    labels: Mapping[str, Tensor],
    error: Exception,
) -> UsageError:
    """Return an error of torch in a loss as one line with the term and its inputs."""
    given: list[str] = []
    for side, recorded, address in (
        ("student", student, term.student),
        ("teacher", teacher or {}, term.teacher),
        ("label", labels, term.target),
    ):
        found = [recorded[layer] for layer in names(address) if layer in recorded]
        given += [f"{side} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for value in found]
    text = " ".join(str(error).split())
    return UsageError(f"term {name!r}: {type(term.loss).__name__} failed on {', '.join(given)}: {text}")


def _outputs_of(term: Term, student: Activations, teacher: Activations | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the outputs of both sides that a term addresses, with their classes last."""
    for side, recorded, address in (("student", student, term.student), ("teacher", teacher, term.teacher)):
        outputs = recorded.get(address) if recorded is not None and isinstance(address, str) else None
        if outputs is not None and outputs.dim() > 1 and outputs.is_floating_point():
            yield side, _classes_last(term, outputs.detach())


def _classes_last(term: Term, outputs: Tensor) -> Tensor:
    classes_first = outputs.dim() == 4 or (outputs.dim() == 3 and term.class_dim == 1)
    return outputs.movedim(1, -1) if classes_first else outputs


def _check_finite(layer: str, values: Tensor) -> None:
    if not values.is_floating_point():
        return
    bad = values.isnan() | values.isposinf()
    rows = values if values.dim() > 1 else values[:, None]
    if bool(bad.any()) or bool(rows.isneginf().flatten(1).all(dim=1).any()):
        raise NonFiniteError(
            f"the teacher's {layer} is not finite in the first batch ({int(bad.sum())} of {values.numel()} values are "
            "NaN or infinite), and the student's outputs are: look for a damaged file of the teacher, or half precision"
        )


def _check_are_tensors(name: str, term: Term, labels: Mapping[str, Any]) -> None:
    for label in names(term.target):
        if label in labels and not isinstance(labels[label], Tensor):
            raise UsageError(
                f"term {name!r}: the label {label!r} of the batch is {describe(labels[label])}, not a tensor: convert "
                "it in the data set or its loader's collate_fn"
            )


def _check_floating(name: str, term: Term, student: Activations, teacher: Activations | None) -> None:
    for side, recorded, address in (("student", student, term.student), ("teacher", teacher or {}, term.teacher)):
        for layer in names(address):
            if layer in recorded and not recorded[layer].is_floating_point():
                kind = str(recorded[layer].dtype).removeprefix("torch.")
                raise UsageError(
                    f"term {name!r}: the {side}'s {layer} are of {kind}, and {type(term.loss).__name__} compares "
                    "distributions of floating-point logits: return these, and not the class or a comparison"
                )


def _check_logits(name: str, term: Term, side: str, outputs: Tensor) -> None:
    values = outputs.float()
    if values.shape[-1] < 2 or not values.numel() or bool(((values < 0) | (values > 1)).any()):
        return
    if are_distributions(values):
        raise UsageError(
            f"term {name!r}: the {side}'s {term.student if side == 'student' else term.teacher} are probabilities "
            f"(all in [0, 1], their rows sum to 1), and {type(term.loss).__name__} takes logits: remove the softmax at "
            "the network's end, or address the layer before it"
        )


def _check_classes(name: str, term: Term, student: Activations, labels: Mapping[str, Tensor]) -> None:
    """Check that labels of classes are some of the classes that the student has."""
    label = labels.get(term.target) if isinstance(term.target, str) else None
    outputs = student.get(term.student) if isinstance(term.student, str) else None
    if not isinstance(label, Tensor) or outputs is None or outputs.dim() < 2 or label.is_floating_point():
        return
    outputs = _classes_last(term, outputs)
    if label.shape != outputs.shape[:-1] or label.dtype == torch.bool:
        return
    classes = outputs.shape[-1]
    wrong = ((label < 0) | (label >= classes)) & (label != term.ignore_index) & (label != UNLABELED)
    if not bool(wrong.any()):
        return
    text = (
        f"the label {int(label[wrong][0])} is none of the {classes} classes of the student's {term.student} "
        f"{tuple(student[cast('str', term.student)].shape)}"
    )
    if loss_trait(term.loss, "needs_target"):
        raise UsageError(
            f"term {name!r}: {text}: labels are 0 to {classes - 1}, or the term's ignore_index={term.ignore_index}: "
            "correct the data, the network's num_classes or ignore_index"
        )
    rank_zero_warn(f"{text}; term {name!r} needs no label, so it is passed over, and evaluation will refuse it")


def _warn_of_weak_teacher(terms: Mapping[str, Term], teacher: Activations, labels: Mapping[str, Tensor]) -> None:
    for term in terms.values():
        outputs = teacher.get(term.teacher) if isinstance(term.teacher, str) else None
        if not is_over_classes(term.loss) or outputs is None or outputs.dim() != 2 or outputs.shape[1] < 2:
            continue
        count, classes = outputs.shape
        if count > 1 and bool((outputs == outputs[:1]).all()):
            rank_zero_warn(
                f"the teacher gives the same {term.teacher} for all {count} samples of the first batch: check its "
                "file and the range of its inputs"
            )
            return
        label = labels.get("target")
        if not isinstance(label, Tensor) or label.shape != (count,) or label.is_floating_point():
            return
        known = (label >= 0) & (label < classes)
        labeled, chance = int(known.sum()), 1 / classes
        right = int((outputs.argmax(dim=1) == label)[known].sum())
        if labeled >= ENOUGH and right <= labeled * chance + 2 * (labeled * chance * (1 - chance)) ** 0.5:
            rank_zero_warn(
                f"the teacher gives the right class of {right} of {labeled} samples in the first batch, no more than "
                "chance: check its file, the range of its inputs and the order of its classes"
            )
        return
