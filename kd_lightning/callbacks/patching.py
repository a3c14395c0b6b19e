"""Methods of a foreign module that are replaced for a while, on its instance alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

_BEFORE = "_kd_before"  # on a replacement: what the instance had in its place


def replace_method(module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
    """Call a replacement, with the original method before the other arguments, wherever the method is called."""
    original = getattr(module, name)

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:  # a function and no partial, for a copy of the module shares it
        return replacement(original, *args, **kwargs)

    vars(method)["__wrapped__"] = getattr(original, "__wrapped__", original)  # whose arguments Lightning counts
    vars(method)[_BEFORE] = vars(module).get(name)
    vars(module)[name] = method


def restore_methods(module: nn.Module, *names: str) -> None:
    """Undo every `replace_method` of these names."""
    for name in names:
        while hasattr(method := vars(module).get(name), _BEFORE):
            vars(module)[name] = getattr(method, _BEFORE)
            if vars(module)[name] is None:
                del vars(module)[name]
