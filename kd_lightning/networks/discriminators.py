"""Discriminators: networks that separate the logits, feature maps or images of two sources."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class Discriminator(nn.Module):
    """Three linear layers on logits or other vectors (Xu et al. 2018, arXiv:1709.00513).

    Args:
        in_features: Values of a sample: the number of classes, for logits.
        width: Width of the two hidden layers.
        classes: Number of classes that it predicts as well; 0 for none.

    Shapes:
        Input (N, in_features, ...), flattened; output (N, 1 + classes): the logit of "real", then those of the classes.

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
        """Compute the logits (N, 1 + classes)."""
        return self.layers(features)


class ConvDiscriminator(nn.Module):
    """Two convolutions, each of which halves the map, and a linear layer on its mean, for feature maps or images.

    Args:
        channels: Channels of the maps.
        width: Width of the first convolution; the second has twice as many channels.
        classes: Number of classes that it predicts as well; 0 for none.

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
        """Compute the logits (N, 1 + classes)."""
        return self.classifier(self.layers(features).mean(dim=(2, 3)))


def _check(classes: int) -> None:
    if classes < 0:
        raise UsageError(f"classes={classes} must be at least 0")
