"""A small source that several tests share."""

from __future__ import annotations

import torch

from kd_lightning.data import LabeledImages, Source


class Shapes(Source):
    """200 training and 30 test images of 4 classes in two channels that differ."""

    num_classes = 4

    def __init__(self, channels: int = 2) -> None:
        self.channels = channels
        self.reads: list[str] = []

    def train(self) -> LabeledImages:
        self.reads.append("train")
        return self._images(200)

    def test(self) -> LabeledImages:
        self.reads.append("test")
        return self._images(30)

    def _images(self, count: int) -> LabeledImages:
        generator = torch.Generator().manual_seed(count)
        images = torch.randint(256, (count, self.channels, 5, 6), dtype=torch.uint8, generator=generator)
        return LabeledImages(images, torch.arange(count) % 4)
