"""Affine transformations of whole batches."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError


class Affine(nn.Module):
    """Rotate, scale and shift all images of a batch in the same way; pixels from outside the image are 0.

    Args:
        degrees: Angle, counter-clockwise.
        scale: Factor of size; 2 is twice as large.
        right: Shift in pixels.
        down: Shift in pixels.

    Shapes:
        Input and output (N, C, H, W).

    Raises:
        UsageError: A number is not finite, or `scale` is not above 0.

    Example:
        >>> import torch
        >>> image = torch.zeros(1, 1, 3, 3).index_fill_(3, torch.tensor([1]), 1.0)
        >>> Affine(right=1)(image)[0, 0, 0]
        tensor([0., 0., 1.])
    """

    def __init__(self, degrees: float = 0.0, scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> None:
        super().__init__()
        if not all(map(math.isfinite, (degrees, scale, right, down))) or scale <= 0:
            raise UsageError(
                f"degrees={degrees}, scale={scale}, right={right} and down={down} must be finite, and scale above 0"
            )
        self.degrees = degrees
        self.scale = scale
        self.right = right
        self.down = down

    def forward(self, images: Tensor) -> Tensor:
        """Transform all images in the same way."""
        height, width = images.shape[2:]
        cos, sin = (f(math.radians(self.degrees)) / self.scale for f in (math.cos, math.sin))
        # source coordinates of an output pixel, in units of half an image
        right, down = 2 * self.right / width, 2 * self.down / height
        matrix = images.new_tensor([[cos, -sin, -cos * right + sin * down], [sin, cos, -sin * right - cos * down]])
        grid = functional.affine_grid(matrix.expand(len(images), -1, -1), [*images.shape], align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)
