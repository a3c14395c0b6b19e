"""Views that are functions of the image: its edges, and its rows as a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EdgeMap(nn.Module):
    """Gradient magnitude of each pixel, as a depth sensor that registers edges and no surfaces.

    |grad x| by Sobel's two filters, divided by 4, its largest value for an image in [0, 1] along an axis.

    Shapes:
        Input and output (N, C, H, W).

    Example:
        >>> step = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]).expand(1, 1, 4, 4)
        >>> EdgeMap()(step)[0, 0, 1]
        tensor([0., 1., 1., 0.])
    """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the gradient magnitude."""
        across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        n, c, h, w = images.shape
        padded = functional.pad(images.reshape(n * c, 1, h, w), (1, 1, 1, 1), mode="replicate")
        slopes = functional.conv2d(padded, torch.stack((across, across.T)).unsqueeze(1))
        return torch.linalg.vector_norm(slopes, dim=1).view(n, c, h, w)


class RowSequence(nn.Module):
    """The image as a sequence of its rows, from the top: the input of a recurrent network.

    Shapes:
        Input (N, C, H, W), of which the first channel is read; output (N, H, W).

    Example:
        >>> RowSequence()(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[0, 1]
        tensor([3., 4.])
    """

    def forward(self, images: Tensor) -> Tensor:
        """Take the first channel."""
        return images[:, 0]
