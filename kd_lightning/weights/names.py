"""Names of weights in files and networks: several names of one parameter, and names of wrapped layers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.core.torch_internals import WRAPPERS
from kd_lightning.weights.reading import WeightsError


def tied_names(network: nn.Module) -> dict[str, str]:
    """Map every name of a parameter or buffer that has several to the first of them.

    Files often have one of the names only: safetensors refuses to write a tensor twice.

    Example:
        >>> network = nn.ModuleDict({"embedding": nn.Embedding(6, 8), "head": nn.Linear(8, 6, bias=False)})
        >>> network["head"].weight = network["embedding"].weight
        >>> tied_names(network)
        {'head.weight': 'embedding.weight'}
    """
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors = chain(
        network.named_parameters(remove_duplicate=False),
        network.named_buffers(remove_duplicate=False),
    )
    for name, tensor in tensors:
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def with_tied(tensors: dict[str, Tensor], tied: Mapping[str, str], network: str, path: Path) -> dict[str, Tensor]:
    """Add the tensors that a file has under another name of the same parameter.

    Args:
        tensors: The file's tensors by the network's names.
        tied: The result of `tied_names`.
        network: The network's class, for the message.
        path: The file, for the message.

    Raises:
        WeightsError: The file has different tensors under two names of one parameter.
    """
    groups: dict[str, list[str]] = {}
    for name, first in tied.items():
        groups.setdefault(first, [first]).append(name)
    found = dict(tensors)
    for names in groups.values():
        there = [name for name in names if name in tensors]
        for name in there[1:]:
            if not torch.equal(tensors[name], tensors[there[0]]):
                raise WeightsError(
                    f"{path}: {there[0]} and {name} differ in the file and are one parameter of {network}: build the "
                    "network without tied weights, as it was trained"
                )
        found |= {name: tensors[there[0]] for name in names if there}
    return found


def without_wrappers(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the names of torch's wrappers out of the names of a file, unless the network is wrapped itself.

    Example:
        >>> list(without_wrappers({"conv._orig_mod.weight": torch.zeros(1)}, {"conv.weight": torch.zeros(1)}))
        ['conv.weight']
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name
        for wrapper in WRAPPERS:
            plain = plain if any(wrapper in kept for kept in own) else plain.replace(wrapper, "")
        renamed[plain] = tensor
    return renamed if len(renamed) == len(tensors) else dict(tensors)  # else two names would become one
