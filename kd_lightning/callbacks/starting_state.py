"""The weights with which a callback's modules start each new run."""

from __future__ import annotations

import uuid
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd_lightning.core.hashing import weights_hash

_trained: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""The callbacks, by their keys, with which each module was trained in this process."""


class StartingState:
    """Gives the modules of a callback their first weights again, in a fit of a module that they do not know.

    In the folds of a cross-validation each fold then starts as the first one did. In another fit of the same module,
    such as one of more epochs, they continue, as the module does. Weights that were set between two fits stay.

    Args:
        part: The modules that the callback trains, such as the terms of `Distillation`.

    Example:
        >>> connector, first, second = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        >>> state, weight = StartingState(connector), connector.weight.item()
        >>> for module in (first, first, second):
        ...     state.start(module)
        ...     print(connector.weight.item() == weight)
        ...     _ = connector.weight.data.add_(1)
        ...     state.end()
        True
        False
        True
    """

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._key = uuid.uuid4().hex
        self._first: list[Tensor] = []
        self._left = ""
        """Hash of the weights at the end of the last fit; empty before there was one."""

    def start(self, module: nn.Module) -> None:
        """Set the weights at the start of a fit of a module, before a resume loads others."""
        tensors, known = [*chain(self._part.parameters(), self._part.buffers())], _trained.setdefault(module, set())
        if weights_hash(self._part) != self._left:
            self._first = [tensor.detach().clone() for tensor in tensors]
        elif self._key not in known:
            for tensor, value in zip(tensors, self._first, strict=True):
                tensor.data = tensor.data.to(value.dtype)
                with torch.no_grad():  # a copy, by which the tensor counts as written
                    tensor.copy_(value)
        known.add(self._key)

    def end(self) -> None:
        """Remember the weights at the end of the fit."""
        self._left = weights_hash(self._part)
