"""Exponential moving averages of networks."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move an exponential average of a network's weights one step towards the network.

    average <- momentum average + (1 - momentum) network

    Parameters and floating-point buffers are averaged: a BatchNorm's statistics belong to its weights. Other buffers
    are copied. Values that are equal in both, infinities included, keep every bit.

    Other implementations differ: ``torch.optim.swa_utils.AveragedModel`` copies buffers unless ``use_buffers`` is set,
    timm's averages them, and the mean teacher's authors run the average in training mode, with its own statistics.

    Args:
        average: The average, changed in place.
        network: The current network, of the same architecture.
        momentum: Share of the old average that is kept, in [0, 1].

    Raises:
        UsageError: `momentum` is not in [0, 1], or the architectures differ.

    Example:
        >>> average, network = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = average.weight.data.fill_(1.0), network.weight.data.fill_(3.0)
        >>> update_ema(average, network, momentum=0.9)
        >>> round(average.weight.item(), 4)
        1.2
    """
    if not 0 <= momentum <= 1:
        raise UsageError(f"momentum={momentum} must lie in [0, 1]")
    check_same_architecture(average, network)
    for averaged, current in zip(average.parameters(), network.parameters(), strict=True):
        averaged.lerp_(current.to(averaged.dtype), 1 - momentum)
    for averaged, current in zip(average.buffers(), network.buffers(), strict=True):
        if averaged.is_floating_point():
            moved = averaged.lerp(current.to(averaged.dtype), 1 - momentum)
            averaged.copy_(torch.where(averaged == current, averaged, moved))  # inf - inf would be NaN
        else:
            averaged.copy_(current)


def check_same_architecture(first: nn.Module, second: nn.Module) -> None:
    """Check that parameters and buffers of two networks have the same names and shapes.

    Raises:
        UsageError: They differ (the message names the first difference).

    Example:
        >>> check_same_architecture(nn.Linear(4, 2), nn.Linear(4, 2))
        >>> check_same_architecture(nn.Linear(4, 2), nn.Linear(4, 3))
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: Linear has weight (2, 4) and Linear has weight (3, 4): build both...
    """
    one, other = _shapes(first), _shapes(second)
    if one == other:
        return
    name = next(name for name in [*one, *other] if one.get(name) != other.get(name))
    found = [
        f"{type(network).__name__} has {f'{name} {shapes[name]}' if name in shapes else f'no {name}'}"
        for network, shapes in ((first, one), (second, other))
    ]
    raise UsageError(f"{' and '.join(found)}: build both networks with the same arguments")


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors: chain[tuple[str, Tensor]] = chain(network.named_parameters(), network.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in tensors}
