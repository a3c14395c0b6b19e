"""Hashes of weights, which identify networks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a network's parameters and buffers.

    Device, memory layout and order of registration do not matter. Every parameter and buffer counts, whether frozen,
    saved, or excluded from state dicts. Of sharded parameters each rank hashes its own shards, and all ranks return
    the hash of these hashes: then all of them must call this.

    Example:
        >>> before = weights_hash(layer := nn.Linear(2, 1))
        >>> _ = layer.weight.data.add_(1.0)
        >>> weights_hash(layer) == before
        False
    """
    return hash_tensors(
        dict(chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)))
    )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors, in the order of their names.

    Example:
        >>> hash_tensors({"weight": torch.zeros(2)})[:16]
        'c3baf28530c283e8'
    """
    total, sharded = hashlib.sha256(), False
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if isinstance(tensor, DTensor):
            tensor, sharded = cast("DTensor", tensor.detach()).to_local(), True
        # Bytes through uint8: numpy has no bfloat16; flattened first: a scalar has no last dimension to reinterpret.
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return _of_all_ranks(total.hexdigest()) if sharded else total.hexdigest()


def _of_all_ranks(found: str) -> str:
    hashes = [""] * dist.get_world_size()
    dist.all_gather_object(hashes, found)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()
