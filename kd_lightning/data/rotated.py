"""MNIST, turned: a domain that is shifted by a known amount."""

from __future__ import annotations

import math
from functools import cache

from kd_lightning.core.errors import UsageError
from kd_lightning.data.idx import LabelledImages
from kd_lightning.data.mnist import PACKAGED, MNISTDataModule, read_published
from kd_lightning.data.tensors import Augmentation


class RotatedMNISTDataModule(MNISTDataModule):
    """MNIST with every image, in training, validation and test alike, turned by the same angle.

    It is what a network meets that was trained on upright digits and is carried elsewhere. Everything else, the choice
    of images included, is as for `MNISTDataModule`.

    Args:
        degrees: The angle, counter-clockwise; what is turned in from outside is black.
        batch_size: Training images a batch, on each process.
        train_size: Images to train on; all that are not held out if not given.
        val_size: Images to hold out for validation; with 0 there is none.
        seed: Chooses the images, their order and what the augmentation draws.
        augmentation: Applied to each training image by itself, after it was turned.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many images a batch outside training, on each process.
        channels: How often the one channel is shown.
        views: In how many ways the augmentation shows an image.

    Raises:
        UsageError: An argument is out of its range, or a file of the package is damaged.

    Example:
        >>> x, y, index = next(iter(RotatedMNISTDataModule(degrees=45.0).test_dataloader()))
        >>> x.shape, y[:3]
        (torch.Size([250, 3, 28, 28]), tensor([7, 2, 1]))
    """

    def __init__(
        self,
        degrees: float = 45.0,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
        epoch_steps: int | None = None,
        eval_batch_size: int = 250,
        channels: int = 3,
        views: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            train_size,
            val_size,
            seed,
            augmentation,
            drop_last,
            epoch_steps,
            eval_batch_size,
            channels,
            views,
        )
        if not math.isfinite(degrees):
            raise UsageError(f"degrees={degrees} is not a finite angle")
        self.degrees = degrees
        self.hparams["degrees"] = degrees

    def _read(self, split: str) -> LabelledImages:
        return _read_rotated(split, self.degrees)


@cache
def _read_rotated(split: str, degrees: float) -> LabelledImages:
    from torchvision.transforms.v2 import InterpolationMode  # here, for it takes seconds to import
    from torchvision.transforms.v2.functional import rotate

    images, labels = read_published(PACKAGED, split)
    turned = rotate(images, degrees, InterpolationMode.BILINEAR)
    return LabelledImages(turned, labels)
