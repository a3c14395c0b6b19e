"""Methods of a user's module that are replaced on its instance during a fit, and restored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

_REPLACED = "_kd_replaced"  # on a replacement: the instance attribute that it replaced, or None


def replace_method(module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a method on an instance; the replacement gets the original method before the other arguments."""
    original = getattr(module, name)

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:  # a function, not a partial, because a copy of the module shares it
        return replacement(original, *args, **kwargs)

    # Lightning counts the arguments of the function that `__wrapped__` names.
    vars(method)["__wrapped__"] = getattr(original, "__wrapped__", original)
    vars(method)[_REPLACED] = vars(module).get(name)
    vars(module)[name] = method


def restore_methods(module: nn.Module, *names: str) -> None:
    """Undo every `replace_method` of these names, nested ones included."""
    for name in names:
        while hasattr(method := vars(module).get(name), _REPLACED):
            vars(module)[name] = getattr(method, _REPLACED)
            if vars(module)[name] is None:
                del vars(module)[name]
