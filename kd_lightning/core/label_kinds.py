"""Labels of every kind: the inference of a kind, and the conversion of outputs and labels for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.flatten import flatten_positions
from kd_lightning.core.loss import LabelKind

SUM_TOLERANCE = 1e-2
"""How far a sum of probabilities may be from 1: half precision rounds each."""


def infer_kind(logits: Tensor, target: Tensor) -> LabelKind:
    """Infer the kind of labels where nothing declares it: class indices, or real values of a network of one output.

    Raises:
        UsageError: They may be of more than one kind.
    """
    integers = not (target.is_floating_point() or target.dtype == torch.bool)
    classes = logits.shape[1] if logits.dim() in (2, 4) else logits.shape[-1]
    if integers and target.dim() == logits.dim() - 1 and classes > 1:
        return "classes"
    one_output = logits.dim() <= 2 and logits.numel() == target.numel()
    if one_output and target.is_floating_point() and logits.numel() == len(logits) and _has_real_values(target):
        return "values"
    raise UsageError(
        f"labels are {target.dtype} {tuple(target.shape)} beside logits {tuple(logits.shape)}, and nothing declares "
        "their kind: give the scheme metrics=classification_metrics(), multilabel_metrics() or regression_metrics() "
        "of kd_lightning.core.metrics, or a task loss that declares its label_kind"
    )


def prepare(kind: LabelKind, logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor] | None:
    """Convert logits and labels to the arguments of metrics; None if every label is ignored.

    Args:
        kind: The kind of the labels.
        logits: Of a network, (N, C), (N, L, C) or (N, C, H, W); of real values any shape.
        target: Class indices or probabilities; labels of zeros and ones; or real values.
        ignore_index: Class index, or whole number of an unknown label, that does not count.

    Raises:
        UsageError: Shapes do not fit each other, or labels that can hold together are given as classes.
    """
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if kind != "classes":
        if logits.dim() == 4 and target.dim() == 3 and logits.shape[1] == 1:  # one output a pixel
            logits = logits.squeeze(1)
        elif logits.dim() == target.dim() + 1 and logits.shape[-1] == 1:
            logits = logits.squeeze(-1)
        if target.dim() == logits.dim() + 1 and target.shape[-1] == 1:
            target = target.squeeze(-1)
        if logits.shape != target.shape:
            raise UsageError(
                f"outputs {tuple(logits.shape)} and labels {tuple(target.shape)} ({kind}) differ in shape: give each "
                "output one label"
            )
        if kind == "values" or target.is_floating_point() or bool((known := target != ignore_index).all()):
            return logits, target
        return (logits[known], target[known]) if bool(known.any()) else None
    positions = logits.shape[:1] + logits.shape[2:] if logits.dim() in (2, 4) else logits.shape[:-1]
    per_position = target.shape == positions
    if logits.dim() not in (2, 3, 4) or not (per_position or target.shape == logits.shape):
        raise UsageError(
            f"logits {tuple(logits.shape)} and labels {tuple(target.shape)} of classes do not fit: labels are class "
            "indices, one a position, or probabilities or one-hot rows of the logits' shape"
        )
    if not per_position:
        target = target.to(logits.dtype)  # one-hot rows of whole numbers are probabilities
        if not are_distributions(target.movedim(1, -1) if logits.dim() == 4 else target):
            raise UsageError(
                f"labels {tuple(target.shape)} hold rows that do not sum to 1, so they are no probabilities of classes "
                "that exclude each other: for labels that can hold together give the scheme BinaryTaskLoss, or "
                "metrics=multilabel_metrics() of kd_lightning.core.metrics"
            )
    elif not target.is_floating_point():
        target = target.long()
        if (target == ignore_index).all():
            return None
    rows = flatten_positions(logits, None, target, ignore_index)
    labels = cast("Tensor", rows.target)
    if not per_position or logits.dim() > 2:
        return rows.student, labels
    kept = labels != ignore_index
    return (rows.student, labels) if bool(kept.all()) else (rows.student[kept], labels[kept])


def update(metrics: MetricCollection, kind: LabelKind, logits: Tensor, target: Tensor) -> None:
    """Add prepared rows to every metric, as each takes them."""
    for metric in cast("Mapping[str, Metric]", metrics).values():
        if kind == "multilabel":
            metric.update(logits if getattr(metric, "takes_logits", False) else logits.sigmoid(), target)
        elif kind == "classes" and not getattr(metric, "takes_probabilities", False):
            metric.update(logits, class_indices(target))
        else:
            metric.update(logits, target)


def are_distributions(target: Tensor) -> bool:
    """Tell if the rows of a target (N, C) sum to 1, as probabilities of exclusive classes do; it waits for the device.

    Example:
        >>> are_distributions(torch.tensor([[0.5, 0.5], [0.0, 1.0]])), are_distributions(torch.tensor([[1.0, 1.0]]))
        (True, False)
    """
    return bool(((target.double().sum(dim=-1) - 1).abs() <= SUM_TOLERANCE).all())


def _has_real_values(target: Tensor) -> bool:
    return bool(((target != 0) & (target != 1)).any())


def class_indices(target: Tensor) -> Tensor:
    """Return class indices (M,) of indices, or of probabilities (M, C)."""
    return target.argmax(dim=1) if target.dim() > 1 else target
