"""When does it change? One callback, one effect."""

from kd_lightning.callbacks.channels_last import ChannelsLast
from kd_lightning.callbacks.exact_resume import ExactResume
from kd_lightning.callbacks.schedules import Constant, Cosine, Exponential, Linear, Ramp, Schedule, Steps
from kd_lightning.callbacks.teacher import TeacherFreezing
from kd_lightning.callbacks.teacher_cache import TeacherCache
from kd_lightning.callbacks.temperature import TemperatureSchedule
from kd_lightning.callbacks.term_weight import TermWeightSchedule

__all__ = [
    "ChannelsLast",
    "Constant",
    "Cosine",
    "ExactResume",
    "Exponential",
    "Linear",
    "Ramp",
    "Schedule",
    "Steps",
    "TeacherCache",
    "TeacherFreezing",
    "TemperatureSchedule",
    "TermWeightSchedule",
]
