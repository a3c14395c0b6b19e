"""Sources: where the images and labels of a data module come from."""

from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.sources.coloured_digits import ColouredDigits
from kd_lightning.data.sources.digits import Digits
from kd_lightning.data.sources.fashion_mnist import FashionMNIST
from kd_lightning.data.sources.mnist import MNIST
from kd_lightning.data.sources.pseudo_labels import PseudoLabels
from kd_lightning.data.sources.rotated import Rotated

__all__ = ["MNIST", "ColouredDigits", "Digits", "FashionMNIST", "LabeledImages", "PseudoLabels", "Rotated", "Source"]
