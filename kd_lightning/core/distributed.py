"""The few collective calls, in one place."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def is_distributed() -> bool:
    """True inside a run of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather_with_grad(local: Tensor) -> Tensor:
    """The rows of all ranks in rank order, with gradients back to each; `local` itself in a single process.

    Every rank must hold the same number of rows. Each rank computes the same loss of the global batch; the backward of
    the gathering sums what all ranks send back and DDP divides by their number, so that the gradient is that of one
    process with the whole batch.

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


def all_reduce_sum(local: Tensor) -> Tensor:
    """The sum of all ranks' tensors, without gradients; `local` itself in a single process."""
    if is_distributed():
        dist.all_reduce(local)
    return local


def rank_weight(rows: int) -> float:
    """How many rows this rank has for each that a rank has on average: 1 in a single process.

    A mean over a rank's rows times its share, averaged over the ranks as DDP averages gradients, is the mean over all.
    """
    if not is_distributed():
        return 1.0
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(rows), device=device)
    dist.all_reduce(total)
    return rows * dist.get_world_size() / total.item()
