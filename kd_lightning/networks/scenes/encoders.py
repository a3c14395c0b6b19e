"""Encoders of scenes, from pixels or from labels: a feature vector for each object."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError


class SceneEncoder(nn.Module):
    """Encode the pixels of a scene by two convolutions with pooling.

    The feature map is divided into ``parts_per_side^2`` equal parts; the features of one part are one object.

    Args:
        width: Channels of both convolutions.
        parts_per_side: Parts along each side of the picture; it must divide 8.

    Shapes:
        scene (N, 1, H, W); output (N, objects, features), the parts row by row.

    Raises:
        UsageError: `parts_per_side` does not divide 8.

    Example:
        >>> import torch
        >>> SceneEncoder(width=4)(torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2, 4, 64])
    """

    def __init__(self, width: int = 32, parts_per_side: int = 2) -> None:
        super().__init__()
        if parts_per_side < 1 or 8 % parts_per_side:
            raise UsageError(
                f"parts_per_side={parts_per_side} does not divide the 8 positions of a side: use 1, 2, 4 or 8"
            )
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(8),
        )
        self.side = 8 // parts_per_side
        self.objects = parts_per_side**2
        self.features = width * self.side**2

    def forward(self, scene: Tensor) -> Tensor:
        """Return the features of each part, (N, objects, features)."""
        return functional.unfold(self.convolutions(scene), self.side, stride=self.side).transpose(1, 2)


class LabelEncoder(nn.Module):
    """Encode the labels of a scene's digits as one-hot vectors, for a teacher with privileged information.

    Each digit is an object.

    Args:
        digits: Number of digits in a scene.

    Shapes:
        digits int64 (N, digits); output (N, digits, 10).

    Example:
        >>> import torch
        >>> LabelEncoder()(torch.tensor([[3, 0, 0, 7]])).argmax(dim=2)
        tensor([[3, 0, 0, 7]])
    """

    def __init__(self, digits: int = 4) -> None:
        super().__init__()
        self.objects = digits
        self.features = 10

    def forward(self, digits: Tensor) -> Tensor:
        """Return the one-hot vectors, (N, digits, 10)."""
        return functional.one_hot(digits, 10).float()


def encoder_sizes(encoder: nn.Module) -> tuple[int, int]:
    """Return the number of objects that an encoder outputs and the features of each.

    Raises:
        UsageError: The encoder has no integer ``objects`` or ``features``.

    Example:
        >>> encoder_sizes(LabelEncoder(digits=4))
        (4, 10)
    """
    objects, features = getattr(encoder, "objects", None), getattr(encoder, "features", None)
    if not isinstance(objects, int) or not isinstance(features, int):
        raise UsageError(
            f"encoder={type(encoder).__name__} does not declare the size of its output: "
            "set its integer attributes `objects` and `features`"
        )
    return objects, features
