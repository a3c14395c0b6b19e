"""Fashion-MNIST, from files on disk."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.data.sources.base import LabeledImages, Source, check_facts
from kd_lightning.data.sources.idx import read_labeled_images
from kd_lightning.data.sources.mnist import IMAGE_SHAPE, NUM_CLASSES, NUM_TEST, NUM_TRAIN


class FashionMNIST(Source):
    """60,000 training and 10,000 test images of clothing, grey, 28 x 28, in 10 classes.

    Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms. 2017 (arXiv:1708.07747). The published hashes are those of compressed files, which distributors may
    compress again: headers, counts, sizes, labels and the number of classes are checked, but no hash.

    Args:
        data_dir: The directory of ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, each gzipped (``.gz``) or not;
            Debian's package ``dataset-fashion-mnist`` has them in ``/usr/share/datasets/fashion-mnist``.

    Raises:
        FileNotFoundError: A file is missing; raised when it is read.
        UsageError: A file is corrupt or not of Fashion-MNIST; raised when it is read.

    Example:
        >>> FashionMNIST("/usr/share/datasets/fashion-mnist").image_shape
        (1, 28, 28)
    """

    num_classes = NUM_CLASSES
    image_shape = IMAGE_SHAPE
    num_train = NUM_TRAIN

    def __init__(self, data_dir: str | Path) -> None:
        self.data_dir = data_dir

    def train(self) -> LabeledImages:
        """The 60,000 training images."""
        return self._read("train", NUM_TRAIN)

    def test(self) -> LabeledImages:
        """The 10,000 test images."""
        return self._read("t10k", NUM_TEST)

    def _read(self, split: str, count: int) -> LabeledImages:
        data = read_labeled_images(self.data_dir, split, NUM_CLASSES)
        return check_facts(data, Path(self.data_dir) / split, count, IMAGE_SHAPE, NUM_CLASSES)
