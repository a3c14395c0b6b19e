"""Many teachers as one network, each of another modality."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.networks.wrappers.ensemble import stack_logits


class ModalityEnsemble(nn.Module):
    """Several networks, each of which sees a view of its own, as one; their logits are stacked, as by `Ensemble`.

    Args:
        members: The networks, by the name of the view that each sees. A layer is tapped as ``members.image.conv.3``.

    Shapes:
        Views by name, each as its network takes it; output: logits (N, K, C), in the order of `members`.

    Raises:
        UsageError: There are no members or, at a call, one's view is missing or their logits differ in shape.
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
            raise UsageError("members is empty: give a network for each view, by its name")
        self.members = nn.ModuleDict(members)

    def forward(self, **views: Any) -> Tensor:
        """The stacked logits (N, K, ...)."""
        if missing := [view for view in self.members if view not in views]:
            raise UsageError(
                f"there is no view {missing[0]!r} of {', '.join(views) or 'none'}: name it in the scheme's "
                "views.teacher"
            )
        members = self.members.items()
        return stack_logits({f"members.{view}": (member, member(views[view])) for view, member in members})
