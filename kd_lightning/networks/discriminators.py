"""Discriminators: what tells one network's logits, or feature maps, from another's."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class Discriminator(nn.Module):
    """Three layers that judge logits or other vectors (Xu et al. 2018, arXiv:1709.00513).

    Args:
        in_features: Values a sample: the number of classes, for logits.
        width: Of the two hidden layers.
        classes: How many classes it names as well; 0 for none.

    Shapes:
        Input (N, in_features, ...), flattened; output (N, 1 + classes), real or not before the logits of the classes.

    Raises:
        UsageError: `classes` is negative.

    Example:
        >>> import torch
        >>> Discriminator(10, classes=10)(torch.zeros(2, 10)).shape
        torch.Size([2, 11])
    """

    def __init__(self, in_features: int, width: int = 64, classes: int = 0) -> None:
        super().__init__()
        _check(classes)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1 + classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """The verdicts."""
        return self.layers(features)


class ConvDiscriminator(nn.Module):
    """Two convolutions, which halve the map, and a mean over it: what judges feature maps, or images.

    Args:
        channels: Of the maps.
        width: Of the first convolution; the second has twice as many channels.
        classes: How many classes it names as well; 0 for none.

    Shapes:
        Input (N, channels, H, W); output (N, 1 + classes).

    Raises:
        UsageError: `classes` is negative.

    Example:
        >>> import torch
        >>> ConvDiscriminator(32)(torch.zeros(2, 32, 8, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, channels: int, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        _check(classes)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.classifier = nn.Linear(2 * width, 1 + classes)

    def forward(self, features: Tensor) -> Tensor:
        """The verdicts."""
        return self.classifier(self.layers(features).mean(dim=(2, 3)))


def _check(classes: int) -> None:
    if classes < 0:
        raise UsageError(f"classes={classes} must be at least 0")
