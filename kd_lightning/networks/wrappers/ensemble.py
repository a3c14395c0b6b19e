"""Several networks with one input as one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import logits_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.network_call import call


class Ensemble(nn.Module):
    """Run several networks on the same input and stack their logits.

    A loss combines the logits (`kd_lightning.losses.EnsembleLoss`), because the mean of softened distributions depends
    on its temperature. The members may have different architectures, and each can be loaded from a separate file by
    `kd_lightning.load_teacher`. A member's layer has the path ``members.0.conv.3``.

    Args:
        members: The networks. Each returns logits, or an object with ``.logits``.

    Shapes:
        Logits (N, C) of K members are stacked to (N, K, C), of tokens (N, L, C) to (N, K, L, C) and of pixels
        (N, C, H, W) to (N, K, C, H, W).

    Raises:
        UsageError: There are no members, or two are the same object; at a call: a member returns no logits, the
            members' logits differ in shape, or a member overwrites the input of the others in place.

    Example:
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> Ensemble([TeacherConvNet(), StudentConvNet()])(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 2, 10])
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UsageError("members is empty: give at least one network, usually two or more")
        for i, member in enumerate(members):
            if (first := next(j for j, other in enumerate(members) if other is member)) != i:
                raise UsageError(
                    f"members {first} and {i} are the same {type(member).__name__}: build or load each "
                    "separately, or increase its weight in the loss"
                )
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the stacked logits, (N, K, ...); the arguments are passed to each member."""
        return stack_logits(
            {f"members.{i}": (member, call(member, *args, **kwargs)) for i, member in enumerate(self.members)}
        )


def stack_logits(outputs: Mapping[str, tuple[nn.Module, Any]]) -> Tensor:
    """Stack the logits of several networks.

    Args:
        outputs: For each name, the network and its output.

    Returns:
        Logits (N, K, ...), in the order of `outputs`.

    Raises:
        UsageError: A network returned no logits, or the logits differ in shape.
    """
    stacked: dict[str, Tensor] = {}
    for name, (network, output) in outputs.items():
        logits, called = logits_of(output), f"{name} ({type(network).__name__})"
        if not isinstance(logits, Tensor):
            raise UsageError(f"{called} returned {type(logits).__name__}: return a tensor, or an object with .logits")
        first = next(iter(stacked), called)
        if stacked and logits.shape != stacked[first].shape:
            raise UsageError(
                f"{first} has logits {tuple(stacked[first].shape)} and {called} {tuple(logits.shape)}: "
                "set the same num_classes for all members"
            )
        stacked[called] = logits
    return torch.stack(list(stacked.values()), dim=1)
