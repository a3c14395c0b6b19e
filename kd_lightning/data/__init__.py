"""Data that a run can be resumed on at any step: sources of images, data modules, and views of a batch."""

from kd_lightning.data.affine import Affine
from kd_lightning.data.graph import KNNGraphDataModule
from kd_lightning.data.loaders import EvaluationLoader, TrainLoader
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.module import ResidentDataModule
from kd_lightning.data.noise import NoiseDataModule, NoiseLoader
from kd_lightning.data.pairs import PairLoader, SameClassPairs
from kd_lightning.data.sources import (
    MNIST,
    ColouredDigits,
    Digits,
    FashionMNIST,
    LabeledImages,
    PseudoLabels,
    Rotated,
    Source,
)
from kd_lightning.data.views import (
    BatchViews,
    DigitScenes,
    EdgeMap,
    MovingDigit,
    NumberWords,
    OpticalFlow,
    PairedViews,
    RowSequence,
    SpokenDigits,
)

__all__ = [
    "MNIST",
    "Affine",
    "BatchViews",
    "ColouredDigits",
    "DigitScenes",
    "Digits",
    "EdgeMap",
    "EvaluationLoader",
    "FashionMNIST",
    "KNNGraphDataModule",
    "LabeledImages",
    "MNISTDataModule",
    "MovingDigit",
    "NoiseDataModule",
    "NoiseLoader",
    "NumberWords",
    "OpticalFlow",
    "PairLoader",
    "PairedViews",
    "PseudoLabels",
    "ResidentDataModule",
    "Rotated",
    "RowSequence",
    "SameClassPairs",
    "Source",
    "SpokenDigits",
    "TrainLoader",
]
