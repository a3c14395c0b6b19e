"""What identifies a network: a hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn


def digest(network: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a network's parameters and buffers.

    The device, the memory layout and the order of registration do not matter; nor does what is left out of state
    dicts or frozen: every parameter and buffer counts, those that are not saved as well.

    Example:
        >>> before = digest(layer := nn.Linear(2, 1))
        >>> _ = layer.weight.data.add_(1.0)
        >>> digest(layer) == before
        False
    """
    return digest_tensors(
        dict(chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)))
    )


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors, in the order of their names.

    Example:
        >>> digest_tensors({"weight": torch.zeros(2)})[:16]
        'c3baf28530c283e8'
    """
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Bytes through uint8, for numpy has no bfloat16; flat first, for a scalar has no last dimension to reinterpret.
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
