"""Random shifts and crops of images, each image by itself and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_shifts(images: Tensor, pixels: int) -> Tensor:
    """Shift each image (N, C, H, W) by up to `pixels` whole pixels in both directions; zeros come in at the border."""
    size = images.new_tensor([images.shape[3], images.shape[2]])  # x comes first in a sampling grid
    offsets = torch.randint(-pixels, pixels + 1, (len(images), 2), device=images.device) * 2 / size
    return _windows(images, torch.ones(len(images), device=images.device), offsets)


def random_crops(images: Tensor, least: float = 0.25) -> Tensor:
    """Crop a window of each image, of `least` of its area to all of it, and enlarge it to the image's size."""
    drawn = torch.rand(len(images), 3, device=images.device)
    side = (least + (1 - least) * drawn[:, 0]).sqrt()
    return _windows(images, side, (2 * drawn[:, 1:] - 1) * (1 - side).unsqueeze(1))


def _windows(images: Tensor, side: Tensor, middle: Tensor) -> Tensor:
    """Sample windows whose sides (N,) and middles (N, 2) are given in halves of an image."""
    scale = torch.diag_embed(side.unsqueeze(1).expand(-1, 2))
    grid = functional.affine_grid(torch.cat((scale, middle.unsqueeze(2)), dim=2), [*images.shape], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
