"""Sources: where the images and labels of a data module come from."""

from kd_lightning.core.exports import public_names
from kd_lightning.data.sources.base import LabeledImages as LabeledImages, Source as Source
from kd_lightning.data.sources.coloured_digits import ColouredDigits as ColouredDigits
from kd_lightning.data.sources.digits import Digits as Digits
from kd_lightning.data.sources.fashion_mnist import FashionMNIST as FashionMNIST
from kd_lightning.data.sources.mnist import MNIST as MNIST
from kd_lightning.data.sources.pseudo_labels import PseudoLabels as PseudoLabels
from kd_lightning.data.sources.rotated import Rotated as Rotated

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
