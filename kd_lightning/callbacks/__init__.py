"""When does it change? One callback, one effect."""

from kd_lightning.callbacks.activation_statistics import ActivationStatistics
from kd_lightning.callbacks.attention_maps import AttentionMaps
from kd_lightning.callbacks.born_again import BornAgain
from kd_lightning.callbacks.channels_last import ChannelsLast
from kd_lightning.callbacks.compiled import Compiled
from kd_lightning.callbacks.distillation import Distillation
from kd_lightning.callbacks.exact_resume import ExactResume
from kd_lightning.callbacks.loss_schedule import LossSchedule
from kd_lightning.callbacks.momentum_teacher import MomentumTeacher
from kd_lightning.callbacks.moving_teacher import MovingTeacher
from kd_lightning.callbacks.schedules import Constant, Cosine, Exponential, Linear, Ramp, Schedule, Steps
from kd_lightning.callbacks.snapshot_teacher import SnapshotTeacher
from kd_lightning.callbacks.synthetic_images import SyntheticImages
from kd_lightning.callbacks.teacher import TeacherFreezing
from kd_lightning.callbacks.teacher_cache import TeacherCache
from kd_lightning.callbacks.temperature import TemperatureSchedule
from kd_lightning.callbacks.term_weight import TermWeightSchedule
from kd_lightning.speed.fast_loop import FastLoop

__all__ = [
    "ActivationStatistics",
    "AttentionMaps",
    "BornAgain",
    "ChannelsLast",
    "Compiled",
    "Constant",
    "Cosine",
    "Distillation",
    "ExactResume",
    "Exponential",
    "FastLoop",
    "Linear",
    "LossSchedule",
    "MomentumTeacher",
    "MovingTeacher",
    "Ramp",
    "Schedule",
    "SnapshotTeacher",
    "Steps",
    "SyntheticImages",
    "TeacherCache",
    "TeacherFreezing",
    "TemperatureSchedule",
    "TermWeightSchedule",
]
