"""Private names of torch that this package touches, each under a plain name.

`tests/core/test_lightning_contract.py` asserts each of them by name. The files that record activations and freeze
networks index ``_modules``, ``_parameters`` and ``_version`` themselves: they run many times a step.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

BatchNorm = _BatchNorm
"""The base of every batch normalisation."""
Dropout = _DropoutNd
"""The base of every dropout layer."""
foreach_norm: Callable[..., tuple[Tensor, ...]] = torch._foreach_norm
"""Compute a norm of each tensor of a list, on a GPU in one kernel."""


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Tell if hooks are registered before or after the optimizer's step."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def undo_compile(network: nn.Module) -> None:
    """Undo ``network.compile()``, for which torch has no public call."""
    network._compiled_call_impl = None


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the network inside of ``torch.compile(network)``; any other is returned unchanged."""
    return getattr(network, "_orig_mod", network)


WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch's wrappers of layers add to the names of their weights."""


def reset_of(module: nn.Module) -> Callable[[], Any] | None:
    """Give the method that draws a layer's own parameters again; `MultiheadAttention` has a private one."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def is_of_convolution(output: Tensor) -> bool:
    """Tell if a tensor is a convolution's own output, by the name of its node in the graph."""
    return "Convolution" in type(output.grad_fn).__name__


def sample_dirichlet(concentration: Tensor) -> Tensor:
    """Draw from Dirichlet distributions (N, C) from torch's default generator of the tensor's device."""
    return torch._sample_dirichlet(concentration)


def set_group_timeout(timeout: timedelta) -> None:
    """Set the time-out of the following operations between all processes."""
    private = "_set_pg_timeout"  # of torch before 2.15
    set_timeout = getattr(dist, "set_timeout", None) or getattr(dist.distributed_c10d, private)
    set_timeout(timeout, dist.group.WORLD)


def abort_process_groups() -> None:
    """End all operations between processes that are under way, where the backend can: NCCL's others wait for them."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
