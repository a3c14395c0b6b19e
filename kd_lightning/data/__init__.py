"""Data that a run can be resumed on at any step."""

from kd_lightning.data.annotated import Affine, AnnotatedMNISTDataModule
from kd_lightning.data.data_free import DataFreeMNISTDataModule
from kd_lightning.data.graph import DigitGraphDataModule
from kd_lightning.data.mnist import FashionMNISTDataModule, MNISTDataModule
from kd_lightning.data.motion import MovingDigit, OpticalFlow
from kd_lightning.data.pairs import PairLoader, SameClassPairs
from kd_lightning.data.rotated import RotatedMNISTDataModule
from kd_lightning.data.scenes import DigitScenesDataModule
from kd_lightning.data.speech import SpokenDigits
from kd_lightning.data.tensors import EvaluationLoader, TrainLoader
from kd_lightning.data.views import EdgeMap, PairedViewsDataModule, Rows
from kd_lightning.data.words import NumberWords

__all__ = [
    "Affine",
    "AnnotatedMNISTDataModule",
    "DataFreeMNISTDataModule",
    "DigitGraphDataModule",
    "DigitScenesDataModule",
    "EdgeMap",
    "EvaluationLoader",
    "FashionMNISTDataModule",
    "MNISTDataModule",
    "MovingDigit",
    "NumberWords",
    "OpticalFlow",
    "PairLoader",
    "PairedViewsDataModule",
    "RotatedMNISTDataModule",
    "Rows",
    "SameClassPairs",
    "SpokenDigits",
    "TrainLoader",
]
