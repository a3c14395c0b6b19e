"""Callbacks: distillation for any module, schedules, evolving teachers, exact resumes, loggers and speed."""

from kd_lightning.callbacks.distillation import Distillation as Distillation
from kd_lightning.callbacks.fault_tolerance import FaultTolerance as FaultTolerance
from kd_lightning.callbacks.loggers.activation_statistics import ActivationStatistics as ActivationStatistics
from kd_lightning.callbacks.loggers.attention_maps import AttentionMapsLogger as AttentionMapsLogger
from kd_lightning.callbacks.loggers.synthetic_images import SyntheticImagesLogger as SyntheticImagesLogger
from kd_lightning.callbacks.resume import ExactResume as ExactResume
from kd_lightning.callbacks.schedules.base import ScheduledCallback as ScheduledCallback
from kd_lightning.callbacks.schedules.functions import (
    Constant as Constant,
    Cosine as Cosine,
    Exponential as Exponential,
    Linear as Linear,
    PiecewiseConstant as PiecewiseConstant,
    Schedule as Schedule,
    SigmoidRampUp as SigmoidRampUp,
)
from kd_lightning.callbacks.schedules.loss import LossSchedule as LossSchedule
from kd_lightning.callbacks.schedules.temperature import TemperatureSchedule as TemperatureSchedule
from kd_lightning.callbacks.schedules.term_weight import TermWeightSchedule as TermWeightSchedule
from kd_lightning.callbacks.teachers.born_again import BornAgain as BornAgain
from kd_lightning.callbacks.teachers.ema import EMATeacher as EMATeacher
from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher as EvolvingTeacher
from kd_lightning.callbacks.teachers.freezing import TeacherFreezing as TeacherFreezing
from kd_lightning.callbacks.teachers.snapshot import SnapshotTeacher as SnapshotTeacher
from kd_lightning.core.exports import public_names
from kd_lightning.speed.channels_last import ChannelsLast as ChannelsLast
from kd_lightning.speed.compile import TorchCompile as TorchCompile
from kd_lightning.speed.fast_loop import FastLoop as FastLoop
from kd_lightning.speed.teacher_cache.callback import TeacherCache as TeacherCache

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
