"""Collective operations between processes; in a single process each returns its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from kd_lightning.core.torch_internals import BatchNorm


def is_distributed() -> bool:
    """Tell whether the run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def all_gather_with_grad(local: Tensor) -> Tensor:
    """Gather the rows of all ranks in rank order, with gradients back to each rank.

    Every rank must hold the same number of rows. Each rank computes the same loss of the global batch: the backward
    pass sums the gradients of all ranks and DDP divides by their number, which gives the gradient of one process with
    the whole batch.

    Args:
        local: This rank's rows, (n, ...).

    Returns:
        The global rows, (n * ranks, ...).
    """
    if not is_distributed():
        return local
    if local.requires_grad:
        return torch.cat(all_gather(local.contiguous()))
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


_has_whole_batch = False


def of_whole_batch(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a loss of the gathered rows, which are the same on all ranks, so that it may share the work of them."""
    global _has_whole_batch
    _has_whole_batch = True
    try:
        return function(*args)
    finally:
        _has_whole_batch = False


def share_of_work() -> tuple[int, int]:
    """Return the number of this rank's share of a loss's work, and of how many: (0, 1) unless all have the same rows.

    Each rank then computes its share and adds up those of all with `all_reduce_sum`.
    """
    return (rank(), world_size()) if _has_whole_batch else (0, 1)


def all_reduce_sum(local: Tensor) -> Tensor:
    """Sum the tensors of all ranks in place, without gradients, and return the sum."""
    if is_distributed():
        dist.all_reduce(local)
    return local


def is_true_anywhere(local: bool, device: torch.device) -> bool:
    """Tell if a fact holds on any rank; every rank calls this."""
    if not is_distributed():
        return local
    return bool(all_reduce_sum(torch.tensor(int(local), device=device)))


def rank_weight(rows: int) -> float:
    """Divide the number of rows on this rank by the average number per rank: 1 in a single process.

    Each rank's mean times this weight, averaged over ranks as DDP averages gradients, is the mean over all rows. Where
    no rank has a row the weight is 0.
    """
    if not is_distributed():
        return 1.0
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(rows), device=device)
    dist.all_reduce(total)
    return rows * dist.get_world_size() / max(total.item(), 1.0)


def rank_weight_of(count: Tensor) -> Tensor:
    """Compute the weight of `rank_weight` from a count on the device, without waiting for it."""
    total = all_reduce_sum(count.float())
    return count.float() * world_size() / total.clamp(min=1)


def broadcast_statistics(module: nn.Module) -> None:
    """Give the running statistics of all BatchNorm layers of a module the values of rank 0, which a checkpoint holds.

    DDP does so before each forward pass, but not in manual optimization.
    """
    if not is_distributed():
        return
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            for buffer in layer.buffers():
                dist.broadcast(buffer, src=0)
