"""Batches: the inputs of both networks and the labels, split from whatever a loader yields."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import choose

LABELS = ("target", "label", "labels")
"""The names that the label of a batch may have; as ``"target"`` a term finds it under each of them."""
NEVER_INPUTS = (*LABELS, "index")
INPUT = "input."
"""Goes before a name in a term's target or mask that is an input of the network."""

InputKeys = tuple[tuple[str, str | list[str]], tuple[str, str | list[str]]]
"""The inputs of student and teacher in a batch that is a mapping, each with the setting that names them."""


class Batch(NamedTuple):
    """Inputs and labels of a batch."""

    student: Any
    """The student's input: a tensor, or a mapping of keyword arguments."""
    teacher: Any
    """The teacher's input: the same object unless the teacher takes another input of the batch."""
    labels: dict[str, Tensor]
    """``"target"``, ``"index"`` and names that terms address; empty when unlabelled."""


def split_batch(batch: Any, label_names: Iterable[str] = (), inputs_too: Iterable[str] = ()) -> Batch:
    """Split a batch into inputs and labels: the only place that depends on the form of batches.

    A tensor is an unlabelled input; tuples and lists are ``(x,)``, ``(x, target)`` or ``(x, target, index)``. In a
    mapping, ``target``, ``label``, ``labels``, ``index`` and `label_names` are labels; the rest is the input, passed by
    name, or alone when it is a single tensor. The first of ``target``, ``label`` and ``labels`` that it holds is also
    available as ``target``. A dataclass, and a named tuple with such a label among its fields, are mappings of their
    fields. Any other object, such as a batch of graphs, is itself the input; its labels are its attributes.

    Args:
        batch: A tensor, a tuple or list of at most three, a mapping, or an object.
        label_names: More names of labels in a mapping; ``input.<name>`` is an input that stays one.
        inputs_too: Those of `label_names` that are inputs of the networks as well, such as ``attention_mask``.

    Raises:
        UsageError: A tuple has more than three parts or holds batches of several loaders, or an ``input.<name>`` is
            missing.

    Example:
        >>> import torch
        >>> batch = {"ids": torch.zeros(2, 3), "mask": torch.ones(2, 3), "label": torch.tensor([0, 1])}
        >>> split = split_batch(batch, ["input.mask"])
        >>> list(split.student), list(split.labels)
        (['ids', 'mask'], ['label', 'input.mask', 'target'])
    """
    if isinstance(batch, Tensor):
        return Batch(batch, batch, {})
    if not isinstance(batch, tuple | list) and isinstance(batch, Mapping):
        return _split_mapping(cast("Mapping[str, Any]", batch), label_names, inputs_too)
    if (named := fields_of(batch, label_names)) is not None:
        return _split_mapping(named, label_names, inputs_too)
    if not isinstance(batch, tuple | list):
        return _split_object(batch, label_names)
    if not batch:
        raise UsageError("a batch is empty: give (x,), (x, target) or (x, target, index)")
    x, *rest = cast("Sequence[Any]", batch)
    if len(rest) > 2:
        raise UsageError(f"a batch of {len(rest) + 1} parts is not (x, target, index): override split_batch")
    if isinstance(x, tuple | list) and rest and isinstance(rest[0], tuple | list) and isinstance(rest[0][0], Tensor):
        raise UsageError(
            "a batch is a list of batches, as CombinedLoader gives it: override split_batch, which knows the batches "
            "of one loader"
        )
    return Batch(x, x, dict(zip(("target", "index"), rest, strict=False)))


def _split_mapping(items: Mapping[str, Any], label_names: Iterable[str], inputs_too: Iterable[str]) -> Batch:
    addressed = [name for name in label_names if not name.startswith(INPUT)]
    known, stays = {*NEVER_INPUTS, *addressed}, set(inputs_too)
    labels = {name: value for name, value in items.items() if name in known}
    inputs = {name: value for name, value in items.items() if name not in known or name in stays}
    for name in label_names:
        if name.startswith(INPUT):
            labels[name] = _input(items, name)
    if (target := target_of(labels)) is not None:
        labels["target"] = target
    x = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return Batch(x, x, labels)


def fields_of(batch: Any, label_names: Iterable[str] = ()) -> dict[str, Any] | None:
    """Return the fields of a dataclass, or of a named tuple whose fields name a label, as a mapping; None otherwise.

    Example:
        >>> class Pair(NamedTuple):
        ...     label: int
        ...     image: str
        >>> fields_of(Pair(3, "x")), fields_of((3, "x"))
        ({'label': 3, 'image': 'x'}, None)
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        items = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return {name: value for name, value in items.items() if value is not None}
    names: tuple[str, ...] = getattr(batch, "_fields", ())
    if not {*LABELS, *label_names} & set(names):
        return None
    return {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}


def _split_object(batch: Any, label_names: Iterable[str]) -> Batch:
    addressed = {name: name.removeprefix(INPUT) for name in (*NEVER_INPUTS, *label_names)}
    found = {name: getattr(batch, attribute, None) for name, attribute in addressed.items()}
    labels = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if (target := target_of(labels)) is not None:
        labels["target"] = target
    return Batch(batch, batch, labels)


def _input(items: Mapping[str, Any], address: str) -> Any:
    name = address.removeprefix(INPUT)
    if name not in items:
        choose(
            name, (other for other in items if other not in NEVER_INPUTS), f"{address}: the batch has no input {{name}}"
        )
    return items[name]


def accepted_inputs(network: nn.Module, names: Iterable[str]) -> list[str]:
    """List the names that a network's forward takes as keyword arguments, explicitly or through ``**kwargs``.

    Example:
        >>> accepted_inputs(nn.Linear(2, 2), ["input", "attention_mask"])
        ['input']
    """
    parameters = inspect.signature(network.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in names if anything or name in parameters]


def check_inputs(network: nn.Module, inputs: Any) -> None:
    """Check that a network's forward takes inputs that are passed by name.

    Raises:
        UsageError: It does not take one of them.
    """
    if not isinstance(inputs, dict):
        return
    names = cast("dict[str, Any]", inputs)
    if refused := [name for name in names if name not in accepted_inputs(network, names)]:
        raise UsageError(
            f"the batch has {', '.join(map(repr, names))}, and {type(network).__name__}.forward takes no "
            f"{refused[0]!r}: address it as a term's target if it is a label, drop it from the batch, or override "
            "split_batch"
        )


def size_of(batch: Any) -> int:
    """Count the samples of a batch.

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
    raise UsageError("cannot infer the batch size: the batch contains no tensor; add an `index`")


def target_of(labels: dict[str, Tensor]) -> Tensor | None:
    """Return the labels that a network is evaluated against, if there are any."""
    return next((labels[name] for name in LABELS if name in labels), None)


def pick_inputs(batch: Any, keys: str | list[str], labels: Iterable[str], setting: str = "input_key") -> Any:
    """Return one input of a batch that is a mapping, or several as a mapping.

    Args:
        batch: The mapping.
        keys: The input's name, or the names of several.
        labels: The labels in the batch, which are no inputs.
        setting: The setting that named the inputs, for the message.

    Raises:
        UsageError: The batch is no mapping, or has no such input (the nearest are given).

    Example:
        >>> pick_inputs({"image": 1, "edges": 2, "rows": 3}, ["edges", "rows"], labels=())
        {'edges': 2, 'rows': 3}
    """
    if isinstance(batch, Tensor) or not isinstance(batch, Mapping):
        raise UsageError(
            f"a batch is {type(batch).__name__}, and inputs are picked by their names: let the data give a mapping, "
            "e.g. ResidentDataModule with PairedViews"
        )
    items = cast("Mapping[str, Any]", batch)
    for name in [keys] if isinstance(keys, str) else keys:
        if name not in items:
            choose(
                name, (other for other in items if other not in set(labels)), f"{setting}: the batch has no {{name}}"
            )
    return items[keys] if isinstance(keys, str) else {name: items[name] for name in keys}


def split_by_keys(batch: Any, keys: InputKeys, label_names: Iterable[str] = ()) -> Batch:
    """Split a batch whose inputs are named: the student's, then the teacher's; see `split_batch`.

    Raises:
        UsageError: As for `pick_inputs`.
    """
    labels = split_batch(batch, label_names).labels if isinstance(batch, Mapping) else {}
    student, teacher = (pick_inputs(batch, names, labels, setting) for setting, names in keys)
    return Batch(student, teacher, labels)
