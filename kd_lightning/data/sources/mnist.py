"""MNIST, whose four files are packaged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kd_lightning.data.sources.base import LabeledImages, Source, check_facts
from kd_lightning.data.sources.idx import read_labeled_images

PACKAGED = Path(__file__).parents[1] / "files" / "mnist"
NUM_TRAIN, NUM_TEST, IMAGE_SHAPE, NUM_CLASSES = 60_000, 10_000, (1, 28, 28), 10
"""Sizes of MNIST, and of Fashion-MNIST, which has the same."""
PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNIST(Source):
    """60,000 training and 10,000 test digits, grey, 28 x 28, from packaged files.

    Yann LeCun, Leon Bottou, Yoshua Bengio, Patrick Haffner: Gradient-Based Learning Applied to Document Recognition.
    Proceedings of the IEEE, 1998. The extracted bytes of each file are compared with the published MD5; a process
    reads each set once.

    Raises:
        UsageError: A packaged file is corrupt; raised when it is read.

    Example:
        >>> images, labels = MNIST().test()
        >>> images.shape, labels[:3].tolist()
        (torch.Size([10000, 1, 28, 28]), [7, 2, 1])
    """

    num_classes = NUM_CLASSES
    image_shape = IMAGE_SHAPE
    num_train = NUM_TRAIN

    def train(self) -> LabeledImages:
        """The 60,000 training digits."""
        return read_published(PACKAGED, "train")

    def test(self) -> LabeledImages:
        """The 10,000 test digits."""
        return read_published(PACKAGED, "t10k")


@cache
def read_published(directory: Path, split: str) -> LabeledImages:
    """Read one of MNIST's two sets, ``train`` or ``t10k``, and check that it is the published one."""
    data = read_labeled_images(directory, split, NUM_CLASSES, PUBLISHED_MD5)
    return check_facts(data, directory / split, NUM_TRAIN if split == "train" else NUM_TEST, IMAGE_SHAPE, NUM_CLASSES)
