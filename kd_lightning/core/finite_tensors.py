"""Search of gradients, weights and checkpoints for values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kd_lightning.core.torch_internals import foreach_norm

STATE_KEYS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "callbacks")
"""Entries of a checkpoint that hold weights, their averages, and the moments of optimizers."""


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell if all values of dense floating-point tensors are finite; waits for their device.

    Example:
        >>> are_finite([torch.tensor([1e30, -1e30])]), are_finite([torch.ones(2), torch.tensor([torch.inf])])
        (True, False)
    """
    try:
        # norms are several times faster than `isfinite` on a CPU, and finite only if every value is
        if math.isfinite(torch.stack(foreach_norm(tensors)).sum().item() if tensors else 0.0):
            return True
    except (RuntimeError, NotImplementedError):  # sparse, on several devices, or of a dtype that has no norm
        pass
    return all(is_finite(tensor) for tensor in tensors)  # a norm of great finite values is infinite, too


def is_finite(tensor: Tensor) -> bool:
    """Tell if all values of a floating-point tensor of any layout and dtype are finite."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()
    return bool(torch.isfinite(values).all())


def greatest_magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """Return the greatest magnitude in each floating-point tensor, (K,), not finite where a value is not; no waiting.

    Example:
        >>> greatest_magnitudes([torch.tensor([1.0, -3.0]), torch.tensor([torch.inf])])
        tensor([3., inf])
    """
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    return torch.stack([norm.float() for norm in foreach_norm(dense, math.inf)]) if dense else torch.zeros(0)


def first_value(tensor: Tensor) -> float:
    """Return the first value of a tensor that is not finite; NaN if there is none."""
    values = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    found = values[~torch.isfinite(values)]
    return found.flatten()[0].item() if found.numel() else math.nan


def non_finite_entries(content: Any, expected: Iterable[str] = ()) -> list[str]:
    """List the dotted names of floating-point tensors, in nested mappings and lists, that are not finite.

    Args:
        content: For example a state dict.
        expected: Names of tensors that may hold anything, such as a causal mask; also as the end of a longer name.

    Example:
        >>> non_finite_entries({"state_dict": {"0.weight": torch.tensor([torch.nan]), "mask": torch.tensor([0.0])}})
        ['state_dict.0.weight']
    """
    found = [(name, tensor) for name, tensor in _tensors(content) if tensor.is_floating_point()]
    if are_finite([tensor for _, tensor in found]):
        return []
    endings = tuple(f".{name}" for name in expected)
    return [name for name, tensor in found if not f".{name}".endswith(endings) and not is_finite(tensor)]


def non_finite_state(checkpoint: Mapping[str, Any], expected: Iterable[str] = ()) -> list[str]:
    """List the weights, averages and moments of a checkpoint that are not finite.

    Single numbers in the states of callbacks are not searched: `EarlyStopping` begins with an infinite score.
    """
    found = non_finite_entries({key: checkpoint[key] for key in STATE_KEYS[:-1] if key in checkpoint}, expected)
    states = [(name, tensor) for name, tensor in _tensors(checkpoint.get("callbacks", {})) if tensor.dim()]
    return found + non_finite_entries({f"callbacks.{name}": tensor for name, tensor in states}, expected)


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in cast("Mapping[Any, Any]", content).items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list | tuple):
        for i, value in enumerate(cast("list[Any]", content)):
            yield from _tensors(value, f"{prefix}.{i}")
