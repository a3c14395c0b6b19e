"""MovingDigit and OpticalFlow: a digit in motion, and its motion."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.stateless_random import stateless_uniform


class MovingDigit(nn.Module):
    """Frames of the digit as it moves across the image; the sample's number draws its direction and pace.

    Args:
        frames: Number of frames; in the middle the digit is in its own place.
        pace: Largest shift from a frame to the next, in pixels; the smallest is half of it.

    Shapes:
        Output (N, frames, H, W) of the first channel.

    Raises:
        UsageError: There are fewer than two frames, or the pace is not above 0.

    Example:
        >>> MovingDigit(3).of_samples(torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]), torch.tensor([0, 1])).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(self, frames: int = 3, pace: float = 2.0) -> None:
        super().__init__()
        if frames < 2 or not (math.isfinite(pace) and pace > 0):
            raise UsageError(f"frames={frames} must be at least 2 and pace={pace} a finite number above 0")
        self.frames = frames
        self.pace = pace

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """The frames of the samples."""
        drawn = stateless_uniform(index, 2, salt=6)
        direction, pace = 2 * math.pi * drawn[:, 0], self.pace * (1 + drawn[:, 1]) / 2
        velocity = torch.stack((direction.cos() * pace, direction.sin() * pace), dim=1)  # x, y
        height, width = images.shape[2:]
        half = velocity.new_tensor([width / 2, height / 2])
        unmoved = torch.eye(2, 3, device=images.device).expand(len(images), -1, -1)
        moved: list[Tensor] = []
        for frame in range(self.frames):
            # where a place of the frame comes from, in units of half an image
            offset = -velocity * (frame - (self.frames - 1) / 2) / half
            theta = torch.cat((unmoved[:, :, :2], offset.unsqueeze(2)), dim=2)
            grid = functional.affine_grid(theta, [len(images), 1, height, width], align_corners=False)
            moved.append(functional.grid_sample(images[:, :1], grid, align_corners=False))
        return torch.cat(moved, dim=1)


class OpticalFlow(nn.Module):
    """Optical flow of a moving digit from each frame to the next, without its brightness.

    At each place the (u, v) that minimises sum (I_x u + I_y v + I_t)^2 + ridge (u^2 + v^2) over a window around it.

    Bruce Lucas, Takeo Kanade: An Iterative Image Registration Technique with an Application to Stereo Vision. IJCAI
    1981; one iteration.

    Args:
        frames: Number of frames; see `MovingDigit`.
        pace: Largest shift from a frame to the next, in pixels; see `MovingDigit`.
        window: Side of the window in pixels, odd.
        ridge: Weight of the ridge term, which keeps the flow of pixels without a gradient at 0.

    Shapes:
        Output (N, 2 (frames - 1), H, W): u and v in pixels, of the first pair of frames, then of the next.

    Raises:
        UsageError: The window is not odd, or the ridge not above 0; or as for `MovingDigit`.
    """

    def __init__(self, frames: int = 3, pace: float = 2.0, window: int = 5, ridge: float = 0.01) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0 or not ridge > 0:
            raise UsageError(f"window={window} must be odd and ridge={ridge} above 0")
        self.moving = MovingDigit(frames, pace)
        self.window = window
        self.ridge = ridge

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """The flow of the moving digits."""
        return self.between(self.moving.of_samples(images, labels, index, test))

    def between(self, frames: Tensor) -> Tensor:
        """The flow of frames (N, T, H, W)."""
        before, after = frames[:, :-1], frames[:, 1:]
        middle = functional.pad((before + after) / 2, (1, 1, 1, 1), mode="replicate")
        along_x = (middle[:, :, 1:-1, 2:] - middle[:, :, 1:-1, :-2]) / 2
        along_y = (middle[:, :, 2:, 1:-1] - middle[:, :, :-2, 1:-1]) / 2
        in_time = after - before
        xx, yy, xy = (self._sum(a * b) for a, b in ((along_x, along_x), (along_y, along_y), (along_x, along_y)))
        xt, yt = self._sum(along_x * in_time), self._sum(along_y * in_time)
        xx, yy = xx + self.ridge, yy + self.ridge
        determinant = xx * yy - xy * xy
        flow = torch.stack(((xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant), dim=2)
        return flow.flatten(1, 2)

    def _sum(self, values: Tensor) -> Tensor:
        mean = functional.avg_pool2d(values, self.window, stride=1, padding=self.window // 2)
        return mean * self.window**2
