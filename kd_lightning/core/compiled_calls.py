"""Hooks that come and go, seen by compiled networks: torch's setting for it, applied to the calls that need it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


class HookGuardedCall:
    """A compiled call whose graphs are guarded against hooks that come and go.

    Torch leaves these guards out by default, so that a graph that was compiled without a hook ignores one that is added
    later. Switching them on for the process would slow down every compiled module of the user's; here they hold for the
    networks that are recorded from alone.
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
    """Guard the graphs that are compiled in this context against hooks that come and go."""
    import torch._dynamo  # here, for the import takes seconds and only compiled networks need it

    return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


def anything_compiled() -> bool:
    """Tell whether torch has compiled anything in this process."""
    import torch._dynamo.utils

    return torch._dynamo.utils.counters["frames"]["total"] > 0


def guard_compiled(network: nn.Module, layer: str) -> None:
    """Let all later calls of the compiled modules between a network and one of its layers take notice of hooks.

    Graphs that were compiled before are dropped, once, for they may ignore the hooks.
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
