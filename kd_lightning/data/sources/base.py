"""Source: the images and labels of a data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.split import TrainingRequest, TrainingSplit, split_rows


class LabeledImages(NamedTuple):
    """Images and labels, resident in memory as bytes and classes."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,), classes from 0."""


class Source(ABC):
    """A data set of labeled images; a data module reads its training set once and its test set once.

    A subclass sets `num_classes` and has `train` and `test`. It may set `image_shape` and `num_train`, if they are
    known without reading a file, and override `prepare` and `split`.

    Example:
        >>> class Stripes(Source):
        ...     num_classes = 2
        ...
        ...     def train(self):
        ...         labels = torch.arange(100) % 2
        ...         return LabeledImages((labels * 255).byte().view(-1, 1, 1, 1).expand(-1, 3, 8, 8), labels)
        ...
        ...     def test(self):
        ...         return self.train()
        >>> from kd_lightning.data import ResidentDataModule
        >>> data = ResidentDataModule(Stripes(), batch_size=10, val_size=20)
        >>> next(iter(data.train_dataloader()))[0].shape
        torch.Size([10, 3, 8, 8])
    """

    num_classes: int
    """Number of classes: labels lie below it."""
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W); None if only reading the test set tells it."""
    num_train: int | None = None
    """Rows of the training set, validation included; None if only reading it tells them."""

    @abstractmethod
    def train(self) -> LabeledImages:
        """Return the training set, validation included."""

    @abstractmethod
    def test(self) -> LabeledImages:
        """Return the test set."""

    def prepare(self, request: TrainingRequest | None) -> None:  # noqa: B027 (most sources need nothing)
        """Prepare files before they are read, once and on one process: a download, a labeling.

        Args:
            request: The settings of the split; None if no training row will be read.
        """

    def split(self, request: TrainingRequest) -> TrainingSplit:
        """Split the training set into training and validation rows; see `kd_lightning.data.split.split_rows`."""
        labels = self.train().labels
        rows = split_rows(labels, request.train_size, request.val_size, request.seed, request.classes)
        return TrainingSplit(labels, *rows)


def check_facts(
    data: LabeledImages, where: object, count: int, image_shape: tuple[int, int, int], num_classes: int
) -> LabeledImages:
    """Return the images if their number, size and classes are the published ones of a data set.

    Args:
        data: The images.
        where: Their file or function, which begins the message.
        count: Number of images.
        image_shape: (C, H, W).
        num_classes: Number of classes, each of which must occur.

    Raises:
        UsageError: The number, size or classes differ.

    Example:
        >>> few = LabeledImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> check_facts(few, "files/train", 60_000, (1, 28, 28), 10)
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: files/train: 3 images of 2 x 2 in 2 classes; expected 60,000 images of...
    """
    found = _facts(len(data.labels), tuple(data.images.shape[1:]), len(data.labels.unique()))
    expected = _facts(count, image_shape, num_classes)
    if found != expected:
        raise UsageError(f"{where}: {found}; expected {expected}: download the published files again")
    return data


def check_resident(data: LabeledImages, num_classes: int, where: str) -> LabeledImages:
    """Return a source's images if their types, shapes, number and labels are valid.

    Args:
        data: The source's images.
        num_classes: Labels must lie below it.
        where: The source's method, which begins the message.

    Raises:
        UsageError: A type, a shape, a count or a label is wrong.
    """
    images, labels = data
    if images.dtype != torch.uint8 or images.dim() != 4 or labels.dtype != torch.int64 or labels.dim() != 1:
        raise UsageError(
            f"{where} returns images {images.dtype} {tuple(images.shape)} and labels {labels.dtype} "
            f"{tuple(labels.shape)}: return uint8 images (N, C, H, W) and int64 labels (N,)"
        )
    if len(images) != len(labels) or not len(labels):
        raise UsageError(
            f"{where} returns {len(images)} images and {len(labels)} labels: return one label for each image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UsageError(
            f"{where} returns labels from {low} to {high}, but num_classes={num_classes}: correct one of them"
        )
    return data


def _facts(count: int, image_shape: tuple[int, ...], num_classes: int) -> str:
    size = " x ".join(map(str, image_shape[1:] if image_shape[0] == 1 else image_shape))
    return f"{count:,} images of {size} in {num_classes} class{'es' if num_classes != 1 else ''}"
