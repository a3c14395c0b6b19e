"""Data that a run can be resumed on at any step: sources of images, data modules, and views of a batch."""

from kd_lightning.core.exports import public_names
from kd_lightning.data.affine import Affine as Affine
from kd_lightning.data.graph import KNNGraphDataModule as KNNGraphDataModule
from kd_lightning.data.loaders import EvaluationLoader as EvaluationLoader, TrainLoader as TrainLoader
from kd_lightning.data.mnist import MNISTDataModule as MNISTDataModule
from kd_lightning.data.module import ResidentDataModule as ResidentDataModule
from kd_lightning.data.noise import NoiseDataModule as NoiseDataModule, NoiseLoader as NoiseLoader
from kd_lightning.data.pairs import PairLoader as PairLoader, SameClassPairs as SameClassPairs
from kd_lightning.data.sources import *  # noqa: F403
from kd_lightning.data.views import (
    BatchViews as BatchViews,
    DigitScenes as DigitScenes,
    EdgeMap as EdgeMap,
    LabelTable as LabelTable,
    MovingDigit as MovingDigit,
    NumberWords as NumberWords,
    OpticalFlow as OpticalFlow,
    PairedViews as PairedViews,
    RowSequence as RowSequence,
    SpokenDigits as SpokenDigits,
)

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
