"""What a loader gave, told apart: the inputs and the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

from torch import Tensor

from kd_lightning.core.errors import UsageError

LABELS = ("target", "label", "labels")
"""What a mapping calls the labels that a network is evaluated against, unless a term says otherwise."""

Views = tuple[tuple[str, str | list[str]], tuple[str, str | list[str]]]
"""What the student and the teacher see of a batch in views, each with the setting that says so."""


class Batch(NamedTuple):
    """What `split_batch` makes of whatever the loader gave."""

    student: Any
    """The student's input: a tensor, or a mapping of keyword arguments."""
    teacher: Any
    """The teacher's input: the same object unless the teacher sees another view."""
    labels: dict[str, Tensor]
    """``"target"``, ``"index"`` and task-specific names; empty when unlabelled."""


def split_batch(batch: Any, label_names: Iterable[str] = ()) -> Batch:
    """Tells inputs from labels: the one place that knows what loaders give.

    A tensor is an unlabelled input; ``(x,)``, ``(x, target)`` and ``(x, target, index)`` are what they look like. In a
    mapping, ``target``, ``label``, ``labels``, ``index`` and `label_names` are labels; the rest is the input, passed by
    name, or alone when it is a single tensor.

    Args:
        batch: A tensor, a tuple or list of at most three, or a mapping.
        label_names: What else is a label in a mapping.

    Raises:
        UsageError: A tuple has more than three parts.

    Example:
        >>> import torch
        >>> split_batch({"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])}).labels
        {'label': tensor([0, 1])}
    """
    if isinstance(batch, Tensor):
        return Batch(batch, batch, {})
    if not isinstance(batch, tuple | list) and isinstance(batch, Mapping):
        items = cast("Mapping[str, Any]", batch)
        known = {*LABELS, "index", *label_names}
        labels = {name: value for name, value in items.items() if name in known}
        inputs = {name: value for name, value in items.items() if name not in known}
        x = next(iter(inputs.values())) if len(inputs) == 1 else inputs
        return Batch(x, x, labels)
    x, *rest = batch
    if len(rest) > 2:
        raise UsageError(f"a batch of {len(rest) + 1} parts is not (x, target, index): override split_batch")
    return Batch(x, x, dict(zip(("target", "index"), rest, strict=False)))


def size_of(batch: Any) -> int:
    """How many samples a batch has.

    Raises:
        UsageError: There is no tensor in it.

    Example:
        >>> import torch
        >>> size_of({"index": torch.arange(4)})
        4
    """
    split = split_batch(batch)
    inputs = split.student.values() if isinstance(split.student, dict) else [split.student]
    for value in (*inputs, *split.labels.values()):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise UsageError("a batch has no tensor to say how many samples it has: let the data give numbers, at least")


def target_of(labels: dict[str, Tensor]) -> Tensor | None:
    """The labels that a network is evaluated against, if there are any."""
    return next((labels[name] for name in LABELS if name in labels), None)


def pick_view(batch: Any, view: str | list[str], labels: Iterable[str], setting: str = "view") -> Any:
    """One view of a batch that is a mapping, or several as a mapping of their own.

    Args:
        batch: The mapping.
        view: The view's name, or the names of several.
        labels: What in the batch is a label, and no view.
        setting: What the views were named by, for a complaint.

    Raises:
        UsageError: The batch is no mapping, or has no such view (the nearest are given).

    Example:
        >>> pick_view({"image": 1, "edges": 2, "rows": 3}, ["edges", "rows"], labels=())
        {'edges': 2, 'rows': 3}
    """
    if isinstance(batch, Tensor) or not isinstance(batch, Mapping):
        raise UsageError(
            f"a batch is {type(batch).__name__}, and views are picked by their names: let the data give a mapping, "
            "e.g. ResidentDataModule with PairedViews"
        )
    items = cast("Mapping[str, Any]", batch)
    for name in [view] if isinstance(view, str) else view:
        if name not in items:
            there = [other for other in items if other not in set(labels)]
            nearest = get_close_matches(name, there, n=3, cutoff=0.3) or there
            raise UsageError(f"{setting}: the batch has no {name!r}; the nearest of its views are {', '.join(nearest)}")
    return items[view] if isinstance(view, str) else {name: items[name] for name in view}


def split_views(batch: Any, views: Views, label_names: Iterable[str] = ()) -> Batch:
    """As `split_batch`, of a batch in views that are named: the student's, then the teacher's.

    Raises:
        UsageError: As `pick_view`.
    """
    labels = split_batch(batch, label_names).labels if isinstance(batch, Mapping) else {}
    student, teacher = (pick_view(batch, view, labels, setting) for setting, view in views)
    return Batch(student, teacher, labels)
