"""Compiled networks under temporary hooks: torch's hook guards, switched on for the calls that need them only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


class HookGuardedCall:
    """A compiled call whose graphs are recompiled when hooks are added or removed.

    Torch leaves these guards out by default, so that a graph that was compiled without a hook ignores one that is added
    later. Switching them on for the process would slow down every compiled module of the user; here they apply
    only to networks whose activations are recorded.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call, with the guards on while a graph may be compiled."""
        if torch.compiler.is_compiling():
            return self.call(*args, **kwargs)
        with hook_guards():
            return self.call(*args, **kwargs)


def hook_guards() -> AbstractContextManager[Any]:
    """Switch hook guards on for graphs that are compiled in this context."""
    import torch._dynamo  # imported here: it takes seconds, and only compiled networks need it

    return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


def anything_compiled() -> bool:
    """Tell whether torch has compiled anything in this process."""
    import torch._dynamo.utils

    return torch._dynamo.utils.counters["frames"]["total"] > 0


def guard_compiled(network: nn.Module, layer: str) -> None:
    """Make the compiled modules between a network and one of its layers respect hooks in all later calls.

    Graphs that were compiled before are dropped once, because they may ignore the hooks.
    """
    module = network
    for name in ["", *layer.split(".")]:
        module = getattr(module, name, None) if name else module
        if not isinstance(module, nn.Module):
            return
        attribute = "forward" if "_orig_mod" in module._modules else "_compiled_call_impl"  # pyright: ignore[reportPrivateUsage]
        call = vars(module).get(attribute)
        if call is not None and not isinstance(call, HookGuardedCall):
            torch.compiler.reset()
            vars(module)[attribute] = HookGuardedCall(call)
