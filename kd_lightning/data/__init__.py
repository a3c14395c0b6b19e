"""Data that a run can be resumed on at any step."""

from kd_lightning.data.graph import DigitGraphDataModule
from kd_lightning.data.mnist import FashionMNISTDataModule, MNISTDataModule
from kd_lightning.data.pairs import PairLoader, SameClassPairs
from kd_lightning.data.rotated import RotatedMNISTDataModule
from kd_lightning.data.tensors import EvaluationLoader, TrainLoader
from kd_lightning.data.views import EdgeMap, PairedViewsDataModule, Rows

__all__ = [
    "DigitGraphDataModule",
    "EdgeMap",
    "EvaluationLoader",
    "FashionMNISTDataModule",
    "MNISTDataModule",
    "PairLoader",
    "PairedViewsDataModule",
    "RotatedMNISTDataModule",
    "Rows",
    "SameClassPairs",
    "TrainLoader",
]
