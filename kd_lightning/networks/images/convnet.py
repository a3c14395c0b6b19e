"""Convolutional networks of the origin notebook: a teacher with 128 channels and a student with 32."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three convolutions, an adaptive average pool and a linear classifier.

    Layer paths: ``conv.0`` (3x3, stride 2), ``conv.1`` (ReLU), ``conv.2`` (3x3, stride 2), ``conv.3`` (ReLU),
    ``conv.4`` (2x2, stride 1), ``conv.5`` (ReLU), ``pool`` (to 2x2) and ``classifier``. With ``batch_norm=True`` each
    convolution is followed by a BatchNorm2d *inside* ``conv.0``, ``conv.2`` and ``conv.4``, so that the paths have the
    same meaning with and without BatchNorm.

    Args:
        width: Channels of every convolution.
        in_channels: Channels of the images.
        num_classes: Width of the logits.
        batch_norm: Add a BatchNorm after each convolution.

    Shapes:
        Input (N, in_channels, H, W) with H, W >= 11; output: logits (N, num_classes).

    Example:
        >>> import torch
        >>> ConvNet(width=8)(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int, in_channels: int = 3, num_classes: int = 10, batch_norm: bool = False) -> None:
        super().__init__()

        def convolution(channels: int, kernel_size: int, stride: int) -> nn.Module:
            layer = nn.Conv2d(channels, width, kernel_size, stride)
            return nn.Sequential(layer, nn.BatchNorm2d(width)) if batch_norm else layer

        self.conv = nn.Sequential(
            convolution(in_channels, kernel_size=3, stride=2),
            nn.ReLU(),
            convolution(width, kernel_size=3, stride=2),
            nn.ReLU(),
            convolution(width, kernel_size=2, stride=1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.classifier(self.pool(self.conv(images)).flatten(1))


class TeacherConvNet(ConvNet):
    """The origin notebook's teacher: 128 channels, 221,962 parameters on three-channel images and ten classes.

    Args:
        batch_norm: Add a BatchNorm after each convolution.
        in_channels: Channels of the images.
        num_classes: Width of the logits.

    Example:
        >>> sum(parameter.numel() for parameter in TeacherConvNet().parameters())
        221962
    """

    def __init__(self, batch_norm: bool = False, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__(128, in_channels, num_classes, batch_norm)


class StudentConvNet(ConvNet):
    """The origin notebook's student: 32 channels, 15,562 parameters on three-channel images and ten classes.

    Args:
        batch_norm: Add a BatchNorm after each convolution.
        in_channels: Channels of the images.
        num_classes: Width of the logits.

    Example:
        >>> sum(parameter.numel() for parameter in StudentConvNet().parameters())
        15562
    """

    def __init__(self, batch_norm: bool = False, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__(32, in_channels, num_classes, batch_norm)
