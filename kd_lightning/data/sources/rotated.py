"""Images rotated by a fixed angle: a domain shift of known size."""

from __future__ import annotations

import math

from kd_lightning.core.errors import UsageError
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.split import TrainingRequest, TrainingSplit


class Rotated(Source):
    """Another source with every image rotated by the same angle, in training, validation and test.

    Labels and splits are the other source's.

    Args:
        source: The source of the images.
        degrees: The angle, counter-clockwise; pixels from outside the image are black.

    Raises:
        UsageError: The angle is not finite.

    Example:
        >>> from kd_lightning.data import MNIST
        >>> images, labels = Rotated(MNIST(), degrees=45.0).test()
        >>> images.shape, labels[:3].tolist()
        (torch.Size([10000, 1, 28, 28]), [7, 2, 1])
    """

    def __init__(self, source: Source, degrees: float = 45.0) -> None:
        if not math.isfinite(degrees):
            raise UsageError(f"degrees={degrees} is not a finite angle: give a number, e.g. 45.0")
        self.source = source
        self.degrees = degrees
        self.num_classes = source.num_classes
        self.image_shape = source.image_shape
        self.num_train = source.num_train

    def train(self) -> LabeledImages:
        """The other source's training set, rotated."""
        return self._rotated(self.source.train())

    def test(self) -> LabeledImages:
        """The other source's test set, rotated."""
        return self._rotated(self.source.test())

    def prepare(self, request: TrainingRequest | None) -> None:
        """Prepare the other source."""
        self.source.prepare(request)

    def split(self, request: TrainingRequest) -> TrainingSplit:
        """Divide the rows as the other source does."""
        return self.source.split(request)

    def _rotated(self, data: LabeledImages) -> LabeledImages:
        from torchvision.transforms.v2 import InterpolationMode  # here: the import takes seconds
        from torchvision.transforms.v2.functional import rotate

        return LabeledImages(rotate(data.images, self.degrees, InterpolationMode.BILINEAR), data.labels)
