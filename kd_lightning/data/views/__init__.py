"""Views: a batch of images turned into a mapping of different networks' inputs for the same samples."""

from kd_lightning.data.views.base import BatchViews, EvaluationViewLoader, Part, TrainViewLoader, ViewLoader
from kd_lightning.data.views.images import EdgeMap, RowSequence
from kd_lightning.data.views.labels import LabelTable
from kd_lightning.data.views.motion import MovingDigit, OpticalFlow
from kd_lightning.data.views.paired import PairedViews, SampleView
from kd_lightning.data.views.scenes import DigitScenes
from kd_lightning.data.views.speech import SpokenDigits
from kd_lightning.data.views.words import NumberWords

__all__ = [
    "BatchViews",
    "DigitScenes",
    "EdgeMap",
    "EvaluationViewLoader",
    "LabelTable",
    "MovingDigit",
    "NumberWords",
    "OpticalFlow",
    "PairedViews",
    "Part",
    "RowSequence",
    "SampleView",
    "SpokenDigits",
    "TrainViewLoader",
    "ViewLoader",
]
