"""MNIST's digits in colour: a synthetic data set whose channels differ."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.stateless_random import stateless_uniform
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.sources.mnist import MNIST

CONTRAST = 90
"""Least difference between the colours of digit and ground, in each channel, of 255, for grounds of any colour."""
DARK = 86
"""Dark grounds are below it in each channel, and their digits lie as near to 255."""
BORDER = 2
"""Pixels of ground added on each side of a digit."""
SIZE = 32

Ground = Literal["dark", "any"]


class ColouredDigits(Source):
    """MNIST's digits drawn in one colour on a ground of another, 3 x 32 x 32. The colours are **synthetic**.

    Both colours are functions of the sample's number alone (see `kd_lightning.core.stateless_random`): they carry no
    information on the digit and are equal on every machine; training and test draw different ones. An image's pixels
    are (255 - m) ground + m digit, divided by 255 and rounded, for MNIST's pixel m.

    Args:
        ground: With ``dark`` a ground has values from 0 to 85 and its digit from 170 to 255, in each channel. With
            ``any`` a ground has any colour, and its digit differs by at least 90 in each channel, each with its own
            sign: it may be brighter than its ground in red and darker in blue, which is much harder to learn.

    Raises:
        UsageError: There is no such ground.

    Example:
        >>> images, labels = ColouredDigits().test()
        >>> images.shape, labels[:3].tolist()
        (torch.Size([10000, 3, 32, 32]), [7, 2, 1])
    """

    num_classes = MNIST.num_classes
    image_shape = (3, SIZE, SIZE)
    num_train = MNIST.num_train

    def __init__(self, ground: Ground = "dark") -> None:
        if ground not in get_args(Ground):
            raise UsageError(f"ground={ground!r} must be one of {', '.join(get_args(Ground))}")
        self.ground: Ground = ground

    def train(self) -> LabeledImages:
        """The 60,000 training digits, coloured."""
        return _coloured(MNIST().train(), self.ground, salt=10)

    def test(self) -> LabeledImages:
        """The 10,000 test digits, coloured."""
        return _coloured(MNIST().test(), self.ground, salt=11)


def draw_colours(index: Tensor, ground: Ground, salt: int) -> tuple[Tensor, Tensor]:
    """Draw the colours of the grounds and of the digits of samples, int32 (N, 3) each, from 0 to 255.

    Args:
        index: The samples' numbers, int64 (N,).
        ground: The kind of the grounds.
        salt: A constant of the use; see `kd_lightning.core.stateless_random`.
    """
    first, second = stateless_uniform(index, 6, salt).split(3, dim=1)
    if ground == "dark":
        return (first * DARK).int(), 255 - (second * DARK).int()
    colour = (first * 256).int()
    distance = CONTRAST + (second * (257 - 2 * CONTRAST)).int()  # CONTRAST to 256 - CONTRAST
    return colour, (colour + distance) % 256


def _coloured(data: LabeledImages, ground: Ground, salt: int) -> LabeledImages:
    grounds, digits = draw_colours(torch.arange(len(data.labels)), ground, salt)
    images = torch.empty(len(data.labels), 3, SIZE, SIZE, dtype=torch.uint8)
    for rows in torch.arange(len(images)).split(200):
        m = functional.pad(data.images[rows], [BORDER] * 4).int()
        low, high = grounds[rows, :, None, None], digits[rows, :, None, None]
        # whole numbers, so that the bytes are equal on every machine; v / 255 rounded is (v + 128) * 257 / 2^16
        value = 255 * low + m * (high - low) + 128
        images[rows] = ((value + (value >> 8)) >> 8).byte()
    return LabeledImages(images, data.labels)
