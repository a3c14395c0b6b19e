"""ImageFormat: the shape of images, the range of their pixels, and the normalization that networks expect."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError

ImageShape = tuple[int, int, int]
"""(C, H, W)."""
PerChannel = float | list[float]
"""One number for all channels, or a list of one for each."""


class ImageFormat(nn.Module):
    """The images that networks take: pixels in a range, normalized as (pixel - mean) / std.

    Generators, inversions and distilled data sets make their images in this form, so that networks take them directly.

    Args:
        image_shape: (C, H, W).
        value_range: The least and the greatest value of a pixel before normalization.
        mean: Subtracted from each pixel: one number, or one for each channel.
        std: Divides each pixel after that: one number, or one for each channel.

    Raises:
        UsageError: An argument is out of its range, or does not fit the number of channels.

    Example:
        >>> images = ImageFormat((3, 32, 32), value_range=(0.0, 255.0), mean=[120.0, 110.0, 100.0], std=50.0)
        >>> images.from_unit(torch.ones(1, 3, 1, 1)).flatten()
        tensor([2.7000, 2.9000, 3.1000])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        image_shape: ImageShape,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: PerChannel = 0.0,
        std: PerChannel = 1.0,
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape)
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"value_range={value_range} must be two finite numbers, the lower one first")
        means, stds = (per_channel(name, value, image_shape[0]) for name, value in (("mean", mean), ("std", std)))
        if not (stds > 0).all():
            raise UsageError(f"std={std} must be above 0")
        self.register_buffer("low", (low - means) / stds, persistent=False)
        self.register_buffer("high", (high - means) / stds, persistent=False)

    def from_unit(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) from [0, 1] to the form that networks take."""
        return images * (self.high - self.low) + self.low

    def to_unit(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) that networks take to [0, 1], as a picture of them needs."""
        return (images - self.low) / (self.high - self.low)

    def clamp_(self, images: Tensor) -> Tensor:
        """Bring images (N, C, H, W) into the range of their pixels, in place."""
        return images.clamp_(self.low, self.high)

    def noise(self, count: int) -> Tensor:
        """Draw Gaussian noise (count, C, H, W) of the range's middle and half its width, clamped to the range."""
        drawn = torch.randn(count, *self.image_shape, device=self.low.device, dtype=self.low.dtype)
        return self.clamp_(self.from_unit(drawn.mul_(0.5).add_(0.5)))


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """Return (C, H, W) if it is the shape of an image.

    Raises:
        UsageError: It is not.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise UsageError(f"image_shape={[*image_shape]} is not [channels, height, width], e.g. [3, 32, 32]")
    channels, height, width = image_shape
    return channels, height, width


def per_channel(name: str, value: PerChannel, channels: int) -> Tensor:
    """Return one number, or one for each channel, as float32 (C or 1, 1, 1).

    Raises:
        UsageError: There are as many numbers as for other channels, or one is not finite.
    """
    numbers = [value] if isinstance(value, int | float) else value
    if len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name}={value} must be one finite number, or one for each of {channels} channels")
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)
