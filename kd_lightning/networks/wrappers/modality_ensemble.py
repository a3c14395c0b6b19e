"""Many teachers as one network, each of another modality."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.networks.wrappers.ensemble import stack_logits


class ModalityEnsemble(nn.Module):
    """Several networks as one, each with an input of its own; their logits are stacked, as by `Ensemble`.

    Args:
        members: The networks, each by the name of its input. A layer is tapped as ``members.image.conv.3``.

    Shapes:
        Inputs by name, each as its network takes it; output: logits (N, K, C), in the order of `members`.

    Raises:
        UsageError: There are no members or, at a call, the input of one is missing or their logits differ in shape.
        UsageError: At a call: a member gave no logits.

    Example:
        >>> import torch
        >>> from kd_lightning.networks import GRUClassifier, StudentConvNet
        >>> teachers = ModalityEnsemble({"image": StudentConvNet(), "rows": GRUClassifier()})
        >>> teachers(image=torch.zeros(2, 3, 28, 28), rows=torch.zeros(2, 28, 28)).shape
        torch.Size([2, 2, 10])
    """

    def __init__(self, members: dict[str, nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UsageError("members is empty: give a network for each modality, by its name")
        self.members = nn.ModuleDict(members)

    def forward(self, **modalities: Any) -> Tensor:
        """Return the stacked logits (N, K, ...)."""
        if missing := [name for name in self.members if name not in modalities]:
            raise UsageError(
                f"there is no input {missing[0]!r} among {', '.join(modalities) or 'none'}: name it in the scheme's "
                "modalities.teacher"
            )
        members = self.members.items()
        return stack_logits({f"members.{name}": (member, member(modalities[name])) for name, member in members})
