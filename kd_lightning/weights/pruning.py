"""Structured pruning: a narrow network that starts with some channels of a wide one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.torch_internals import BatchNorm

Channels = dict[str, Tensor]
"""Indices of the wide network's outputs that a narrow layer keeps, in increasing order, by the layer's name."""


@torch.no_grad()
def prune(student: nn.Module, teacher: nn.Module, layers: list[str]) -> nn.Module:
    """Fill a network with the filters of a wider one whose sums of absolute weights are the largest.

    Hao Li, Asim Kadav, Igor Durdanovic, Hanan Samet, Hans Peter Graf: Pruning Filters for Efficient ConvNets. ICLR 2017
    (arXiv:1608.08710). A layer keeps as many filters as the student has there, and in each filter the inputs that the
    layer before kept; a layer after a flattened map keeps all positions of a channel.

    Args:
        student: The narrow network, of the same layers, changed in place.
        teacher: The wide one; it is not changed.
        layers: The dotted names of all layers with weights, in the order in which they run: convolutions, linear
            layers, and BatchNorm layers, which keep the channels of the layer before.

    Returns:
        The student.

    Raises:
        UsageError: A layer is of another type, is in one network only, is wider in the student, or does not fit the
            layer before; or the student has weights outside of `layers`.

    Example:
        >>> wide, narrow = (nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)) for width in (8, 4))
        >>> bool((prune(narrow, wide, ["0", "2"])[2].bias == wide[2].bias).all())
        True
    """
    kept = kept_channels(student, teacher, layers)
    before: Tensor | None = None
    for name in layers:
        ours, theirs, chosen = student.get_submodule(name), teacher.get_submodule(name), kept[name]
        wide = dict([*theirs.named_parameters(), *theirs.named_buffers()])
        for key, value in [*ours.named_parameters(), *ours.named_buffers()]:
            whole = wide[key].to(value.device)
            part = whole[chosen.to(value.device)] if whole.dim() else whole
            if part.dim() > 1:
                part = part[:, _inputs(name, part, value, before).to(value.device)]
            if part.shape != value.shape:
                raise UsageError(
                    f"layers: {name}.{key} is {tuple(value.shape)}, but the kept part is {tuple(part.shape)}"
                )
            value.copy_(part)
        before = chosen
    left = [key for key, _ in student.named_parameters() if not key.startswith(tuple(f"{name}." for name in layers))]
    if left:
        raise UsageError(f"layers={layers} leave out {', '.join(left)}: name every layer with weights")
    return student


def kept_channels(student: nn.Module, teacher: nn.Module, layers: list[str]) -> Channels:
    """Choose the teacher's outputs that `prune` keeps in each layer: int64, in increasing order.

    Args:
        student: The narrow network.
        teacher: The wide one.
        layers: As for `prune`.

    Raises:
        UsageError: A layer cannot be pruned, for a reason listed in `prune`.

    Example:
        >>> wide, narrow = nn.Sequential(nn.Linear(1, 3)), nn.Sequential(nn.Linear(1, 2))
        >>> _ = wide[0].weight.data.copy_(torch.tensor([[1.0], [0.1], [-2.0]]))
        >>> kept_channels(narrow, wide, ["0"])
        {'0': tensor([0, 2])}
    """
    if not layers:
        raise UsageError("layers is empty: name every layer with weights, in the order in which they run")
    kept: Channels = {}
    before: Tensor | None = None
    for name in layers:
        ours, theirs = (_layer(network, name) for network in (student, teacher))
        if type(ours) is not type(theirs):
            raise UsageError(
                f"layers: {name!r} is {type(ours).__name__} in the student and {type(theirs).__name__} in the teacher"
            )
        weight = cast("Tensor", theirs.weight).detach()
        width = len(cast("Tensor", ours.weight))
        if isinstance(ours, BatchNorm):
            if before is None:
                raise UsageError(
                    f"layers: {name!r} keeps the channels of the layer before, but is the first: name that layer"
                )
        else:
            if width > len(weight):
                raise UsageError(f"layers: {name!r} has {width} outputs and only {len(weight)} to choose from")
            size = weight.flatten(1).abs().sum(dim=1).cpu()
            before = size.topk(width).indices.sort().values
        kept[name] = before
    return kept


def _layer(network: nn.Module, name: str) -> nn.Module:
    known = dict(network.named_modules())
    found = known.get(name)
    if not isinstance(found, nn.Linear | nn.Conv2d | BatchNorm):
        there = [key for key, module in known.items() if isinstance(module, nn.Linear | nn.Conv2d)]
        raise UsageError(
            f"layers: {name!r} of {type(network).__name__} is not a convolution, linear or BatchNorm layer; there are "
            f"{', '.join(there)}"
        )
    return found


def _inputs(name: str, part: Tensor, value: Tensor, before: Tensor | None) -> Tensor:
    """Choose the inputs that a layer keeps: all, or those of the channels that the layer before kept."""
    if part.shape[1] == value.shape[1]:
        return torch.arange(part.shape[1])
    positions, left = divmod(value.shape[1], 1 if before is None else len(before))
    if before is None or left or part.shape[1] % positions:
        raise UsageError(f"layers: {name!r} takes {value.shape[1]} inputs, which the layer before does not provide")
    return (before.unsqueeze(1) * positions + torch.arange(positions)).flatten()
