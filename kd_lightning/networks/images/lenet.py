"""LeNet-5, the usual network of experiments on data-free distillation."""

from __future__ import annotations

import math

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling, in full or half width, as in papers on data-free distillation.

    Yann LeCun, Leon Bottou, Yoshua Bengio, Patrick Haffner: Gradient-based learning applied to document recognition.
    Proceedings of the IEEE 86, 1998. Layer paths: ``conv.0``, ``conv.1`` (ReLU), ``conv.2`` (pool), ``conv.3``,
    ``conv.4`` (ReLU), ``conv.5`` (pool), ``conv.6``, ``conv.7`` (ReLU), ``hidden``, ``classifier``.

    Args:
        half: Use half the widths: 3, 8, 60 and 42 instead of 6, 16, 120 and 84.
        in_channels: Channels of the images.
        num_classes: Width of the logits.
        standardise: Mean and standard deviation of the images, which are standardised to 0 and 1. MNIST's are 0.1307
            and 0.3081.

    Shapes:
        Input (N, in_channels, 28, 28); output: logits (N, num_classes).

    Raises:
        UsageError: `standardise` is not a finite mean and a finite deviation above 0.

    Example:
        >>> sum(parameter.numel() for parameter in LeNet5(in_channels=1).parameters())
        61706
    """

    def __init__(
        self,
        half: bool = False,
        in_channels: int = 3,
        num_classes: int = 10,
        standardise: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.mean, self.deviation = standardise or (0.0, 1.0)
        if not (math.isfinite(self.mean) and math.isfinite(self.deviation) and self.deviation > 0):
            raise UsageError(f"standardise={standardise} must be a finite mean and a finite deviation above 0")
        first, second, third, hidden = (3, 8, 60, 42) if half else (6, 16, 120, 84)
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, first, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(second, third, kernel_size=5),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(nn.Linear(third, hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, 28, 28)."""
        maps = self.conv((images - self.mean) / self.deviation)
        return self.classifier(self.hidden(maps.flatten(1)))
