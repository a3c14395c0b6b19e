"""The small digits that scikit-learn ships."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from kd_lightning.core.errors import UsageError
from kd_lightning.data.sources.base import LabeledImages, Source, check_facts

NUM_IMAGES, NUM_TRAIN, IMAGE_SHAPE, NUM_CLASSES = 1797, 1297, (1, 8, 8), 10


class Digits(Source):
    """1,797 digits, grey, 8 x 8: the first 1,297 to train on, the last 500 to test on.

    Ethem Alpaydin, Cenk Kaynak: Optical Recognition of Handwritten Digits. UCI, 1998. These are the test set of
    the original, with its 17 grey levels scaled to a byte; the split into two sets is ours.

    Raises:
        UsageError: scikit-learn is not installed, or has other images; raised when they are read.

    Example:
        >>> images, labels = Digits().test()
        >>> images.shape, labels.bincount().tolist()
        (torch.Size([500, 1, 8, 8]), [50, 51, 49, 51, 51, 51, 51, 50, 46, 50])
    """

    num_classes = NUM_CLASSES
    image_shape = IMAGE_SHAPE
    num_train = NUM_TRAIN

    def train(self) -> LabeledImages:
        """The first 1,297 digits."""
        return LabeledImages(*(tensor[:NUM_TRAIN] for tensor in _read()))

    def test(self) -> LabeledImages:
        """The last 500 digits."""
        return LabeledImages(*(tensor[NUM_TRAIN:] for tensor in _read()))


@cache
def _read() -> LabeledImages:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UsageError("Digits needs scikit-learn: pip install 'kd-lightning[graph]'") from None
    found: Any = load_digits()
    images = torch.from_numpy(found.images).mul(15).to(torch.uint8).unsqueeze(1)
    data = LabeledImages(images, torch.from_numpy(found.target).long())
    return check_facts(data, "sklearn.datasets.load_digits()", NUM_IMAGES, IMAGE_SHAPE, NUM_CLASSES)
