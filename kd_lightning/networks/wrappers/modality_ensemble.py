"""Several networks with different inputs as one network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.network_call import run
from kd_lightning.networks.wrappers.ensemble import stack_logits


class ModalityEnsemble(nn.Module):
    """Run several networks, each on a different input, and stack their logits as `Ensemble` does.

    Args:
        members: The networks by the names of their inputs. A member's layer has the path ``members.image.conv.3``.

    Shapes:
        Inputs by name, in the shapes of their networks; output: logits (N, K, C), in the order of `members`.

    Raises:
        UsageError: There are no members; at a call: an input is missing, a member returns no logits, or the members'
            logits differ in shape.

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
            raise UsageError("members is empty: give a network for each modality, e.g. {'image': ...}")
        self.members = nn.ModuleDict(members)

    def forward(self, **modalities: Any) -> Tensor:
        """Return the stacked logits, (N, K, ...)."""
        if missing := [name for name in self.members if name not in modalities]:
            raise UsageError(
                f"the input {missing[0]!r} is missing among {', '.join(modalities) or 'none'}: add it to the scheme's "
                "modalities.teacher"
            )
        members = self.members.items()
        return stack_logits({f"members.{name}": (member, run(member, modalities[name])) for name, member in members})
