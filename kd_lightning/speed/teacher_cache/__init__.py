"""The teacher's outputs for all training rows, computed once and looked up by index."""

from kd_lightning.speed.teacher_cache.callback import TeacherCache as TeacherCache
