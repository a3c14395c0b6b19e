"""Snapshot distillation: the student as it was at the end of the cycle before."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher
from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import epoch, optimizer_step


class SnapshotTeacher(EvolvingTeacher):
    """At the first batch of each cycle the teacher becomes what the student is then.

    theta'_k = theta at the end of cycle k - 1

    Chenglin Yang, Lingxi Xie, Chi Su, Alan L. Yuille: Snapshot Distillation: Teacher-Student Optimization in One
    Generation. CVPR, 2019 (arXiv:1812.00123): a cycle of the learning rate's cosine. With cycles of one epoch it is
    what teaches in PS-KD: Kyungyul Kim, ByeongMoon Ji, Doyoung Yoon, Sangheum Hwang: Self-Knowledge Distillation with
    Progressive Refinement of Targets. ICCV, 2021 (arXiv:2006.12000), whose authors' code keeps, of each image, what the
    student said when it last trained on it instead: in training mode, and somewhere within that epoch.

    In the first cycle the teacher is the untrained student: a `TermWeightSchedule` lets it wait.

    Args:
        every: How long a cycle is.
        unit: Whether that counts optimizer steps or epochs.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it copies.

    Raises:
        UsageError: `every` is below 1 or there is no such unit; at the start of the fit, as for `EvolvingTeacher`.

    Example:
        >>> from kd_lightning.callbacks import PiecewiseConstant, TermWeightSchedule
        >>> past_cycle = SnapshotTeacher(every=40, unit="epoch")
        >>> waits = TermWeightSchedule("kd", PiecewiseConstant({0: 0.0, 40: 1.0}), unit="epoch")
    """

    def __init__(
        self, every: int, unit: Literal["step", "epoch"] = "epoch", teacher: str = "teacher", student: str = "student"
    ) -> None:
        if every < 1 or unit not in ("step", "epoch"):
            raise UsageError(f"every={every} and unit={unit!r}: a cycle has at least 1, and counts 'step' or 'epoch'")
        super().__init__(teacher, student)
        self.every = every
        self.unit = unit

    def moment(self, trainer: Trainer) -> int:
        """The cycle."""
        return (optimizer_step(trainer) if self.unit == "step" else epoch(trainer)) // self.every

    def move(self, trainer: Trainer, pl_module: LightningModule, moment: int) -> None:
        """Copies the student."""
        self.copy_student()
