"""Snapshot distillation: the teacher is a copy of the student from the end of the previous cycle."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher
from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import epoch, optimizer_step


class SnapshotTeacher(EvolvingTeacher):
    """Copy the student into the teacher at the first batch of each cycle.

    theta'_k = theta at the end of cycle k - 1

    Chenglin Yang, Lingxi Xie, Chi Su, Alan L. Yuille: Snapshot Distillation: Teacher-Student Optimization in One
    Generation. CVPR, 2019 (arXiv:1812.00123): a cycle of the learning rate's cosine. With cycles of one epoch it is
    the teacher of PS-KD: Kyungyul Kim, ByeongMoon Ji, Doyoung Yoon, Sangheum Hwang: Self-Knowledge Distillation with
    Progressive Refinement of Targets. ICCV, 2021 (arXiv:2006.12000). Its authors' code stores instead the student's
    output for each image in the last step that trained on it: in training mode, at some point of the previous epoch.

    In the first cycle the teacher is the untrained student: exclude its terms by a `TermWeightSchedule`.

    Args:
        interval: The length of a cycle.
        unit: The unit of `interval`: ``step`` (optimizer steps) or ``epoch``.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it copies.

    Raises:
        UsageError: `interval` is below 1 or there is no such unit; at the start of the fit, as for `EvolvingTeacher`.

    Example:
        >>> from kd_lightning.callbacks import PiecewiseConstant, TermWeightSchedule
        >>> past_cycle = SnapshotTeacher(interval=40, unit="epoch")
        >>> waits = TermWeightSchedule("kd", PiecewiseConstant({0: 0.0, 40: 1.0}), unit="epoch")
    """

    def __init__(
        self,
        interval: int,
        unit: Literal["step", "epoch"] = "epoch",
        teacher: str = "teacher",
        student: str = "student",
    ) -> None:
        if interval < 1:
            raise UsageError(f"interval={interval} must be at least 1")
        if unit not in ("step", "epoch"):
            raise UsageError(f"unit={unit!r} is neither 'step' nor 'epoch'")
        super().__init__(teacher, student)
        self.interval = interval
        self.unit = unit

    def period(self, trainer: Trainer) -> int:
        """Return the number of the cycle."""
        return (optimizer_step(trainer) if self.unit == "step" else epoch(trainer)) // self.interval

    def update_teacher(self, trainer: Trainer, pl_module: LightningModule, period: int) -> None:
        """Copy the student into the teacher."""
        self.copy_student()
