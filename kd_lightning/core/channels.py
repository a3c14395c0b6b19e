"""Networks of colour images that take grey ones."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


def repeat_channels(network: nn.Module, num_channels: int = 3) -> nn.Module:
    """Let a network of `num_channels` equal channels take grey images: the one channel is repeated, without a copy.

    The names of its layers and the keys of its state dict stay the same, so that terms and checkpoints do not change;
    ``"input"`` in a term addresses the repeated images. Images of `num_channels` channels are taken as well.

    Args:
        network: The network, in place.
        num_channels: The channels of its images.

    Returns:
        The same network.

    Raises:
        UsageError: `num_channels` is below 1; at a call: the input has neither one channel nor `num_channels`.

    Example:
        >>> import torch
        >>> from kd_lightning.networks import StudentConvNet
        >>> repeat_channels(StudentConvNet())(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if num_channels < 1:
        raise UsageError(f"num_channels={num_channels} must be at least 1")
    network.register_forward_pre_hook(partial(_repeat, num_channels))
    return network


def _repeat(num_channels: int, network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    images = args[0] if args else None
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, num_channels):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(
            f"{type(network).__name__} repeats one channel to {num_channels} and its input is {found}: "
            f"give images (N, 1, H, W) or (N, {num_channels}, H, W)"
        )
    return images.expand(-1, num_channels, -1, -1), *args[1:]
