"""The weights with which a callback's modules start each new run."""

from __future__ import annotations

import uuid
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from kd_lightning.core.errors import UsageError
from kd_lightning.core.hashing import weights_hash

_trained: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
"""Of each module that was trained in this process, the hashes of its weights at the end, by the callbacks' keys."""


class StartingState:
    """Gives the modules of a callback their first weights again, in a fit of a module that they do not know.

    In the folds of a cross-validation each fold then starts as the first one did. In another fit of the same module,
    such as one of more epochs, they continue, as the module does; if the module was given other weights since, as by
    folds that reset it, a warning tells so. Weights that were set between two fits stay.

    Args:
        part: The modules that the callback trains, such as the terms of `Distillation`.

    Raises:
        UsageError: In a fit of another module: lazy layers have taken their shapes from the module before.

    Example:
        >>> connector, first, second = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        >>> state, weight = StartingState(connector), connector.weight.item()
        >>> for module in (first, first, second):
        ...     state.start(module)
        ...     print(connector.weight.item() == weight)
        ...     _ = connector.weight.data.add_(1)
        ...     state.end(module)
        True
        False
        True
    """

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._key = uuid.uuid4().hex
        self._first: list[Tensor | None] = []
        """The first weights; None for those of lazy layers, which had no shape."""
        self._left = ""
        """Hash of the weights at the end of the last fit; empty before there was one."""

    def start(self, module: nn.Module) -> None:
        """Set the weights at the start of a fit of a module, before a resume loads others."""
        tensors, known = _tensors(self._part), _trained.setdefault(module, {})
        if not self._left or weights_hash(self._part) != self._left:
            self._first = [None if is_lazy(tensor) else tensor.detach().clone() for tensor in tensors]
        elif self._key not in known:
            self._restore(tensors, module)
        elif known[self._key] and tensors and _hash_of_module(module) != known[self._key]:
            rank_zero_warn(
                f"{type(module).__name__} has other weights than at the end of its last fit with this Distillation, "
                "and the connectors of its terms continue from that fit: give each fold a new module or a new "
                "Distillation"
            )
        known.setdefault(self._key, "")

    def end(self, module: nn.Module) -> None:
        """Remember the weights at the end of the fit of a module."""
        tensors = _tensors(self._part)
        if any(map(is_lazy, tensors)):  # the fit has failed before its first step
            return
        self._left = weights_hash(self._part)
        _trained.setdefault(module, {})[self._key] = _hash_of_module(module) if tensors else ""

    def _restore(self, tensors: list[Tensor], module: nn.Module) -> None:
        for tensor, value in zip(tensors, self._first, strict=True):
            if value is None:
                raise UsageError(
                    "the terms of this Distillation have lazy layers, whose sizes and first weights are of another "
                    f"module than this {type(module).__name__}: build Distillation anew for each module"
                )
            tensor.data = tensor.data.to(value.dtype)
            with torch.no_grad():  # a copy, by which the tensor counts as written
                tensor.copy_(value)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*chain(module.parameters(), module.buffers())]


def _hash_of_module(module: nn.Module) -> str:
    """Hash a module's weights; empty where a process has shards of them, or where they have no shape yet."""
    if any(is_lazy(tensor) or isinstance(tensor, DTensor) for tensor in _tensors(module)):
        return ""  # also in the handling of an error on one process, which must not wait for the others
    return weights_hash(module)
