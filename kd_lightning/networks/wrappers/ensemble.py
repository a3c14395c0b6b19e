"""Many teachers as one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import logits_of
from kd_lightning.core.errors import UsageError


class Ensemble(nn.Module):
    """Several networks that see the same input, as one; their logits are stacked, and a loss combines them.

    Combining is left to the loss (`kd_lightning.losses.EnsembleLoss`), as the mean of softened distributions depends on
    its temperature. The members may be of different kinds, and each may be loaded from a file of its own, by
    `kd_lightning.load_teacher`. A layer is tapped as ``members.0.conv.3``.

    Args:
        members: The networks. Each returns logits, or an object that has ``.logits``.

    Shapes:
        Logits (N, C) of K members are stacked to (N, K, C), of tokens (N, L, C) to (N, K, L, C) and of pixels
        (N, C, H, W) to (N, K, C, H, W).

    Raises:
        UsageError: There are no members, one is there twice, or, at a call, their logits differ in shape.
        UsageError: At a call: a member gave no logits.

    Example:
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> Ensemble([TeacherConvNet(), StudentConvNet()])(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 2, 10])
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UsageError("members is empty: an ensemble needs a network, and makes sense with two")
        for i, member in enumerate(members):
            if (first := next(j for j, other in enumerate(members) if other is member)) != i:
                raise UsageError(
                    f"members {first} and {i} are the same {type(member).__name__}: build or load each by itself, "
                    "or give one more weight in the loss"
                )
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The stacked logits (N, K, ...) of an input, or of a mapping's items by their names."""
        return stack_logits(
            {f"members.{i}": (member, member(*args, **kwargs)) for i, member in enumerate(self.members)}
        )


def stack_logits(outputs: Mapping[str, tuple[nn.Module, Any]]) -> Tensor:
    """What networks gave, by their names, as logits (N, K, ...).

    Raises:
        UsageError: Logits differ in shape.
        UsageError: A network gave none.
    """
    stacked: dict[str, Tensor] = {}
    for name, (network, output) in outputs.items():
        logits, called = logits_of(output), f"{name} ({type(network).__name__})"
        if not isinstance(logits, Tensor):
            raise UsageError(
                f"{called} gave {type(logits).__name__}, not a tensor: return one, or an object with .logits"
            )
        first = next(iter(stacked), called)
        if stacked and logits.shape != stacked[first].shape:
            raise UsageError(
                f"{first} gave logits {tuple(stacked[first].shape)} and {called} {tuple(logits.shape)}: "
                "give all of them the same num_classes"
            )
        stacked[called] = logits
    return torch.stack(list(stacked.values()), dim=1)
