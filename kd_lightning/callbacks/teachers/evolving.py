"""The base class of callbacks that make a teacher from its student's weights during the fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.distributed import is_distributed
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze, include_in_state_dict
from kd_lightning.core.lookup import find_network
from kd_lightning.core.teacher_holder import register_teacher
from kd_lightning.core.traits import check_teacher_use, teacher_for
from kd_lightning.weights.averaging import check_same_architecture


class EvolvingTeacher(Callback, ABC):
    """The base class of evolving teachers, whose weights are updated from a student of the same architecture.

    The teacher is frozen, in eval mode and in no optimizer; because it changes, it is in the checkpoints. A subclass
    divides the training into periods (`period`: a number that depends on the optimizer step or the epoch) and updates
    the teacher at the start of each (`update_teacher`). The number of the last period is saved in the checkpoints, so
    that no update is missed or repeated after a resume.

    If another callback brings a teacher for this student, as `Distillation` does, that teacher is updated.

    Args:
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that the teacher is made from.

    Raises:
        UsageError: At the start of the fit: there is no such network (the nearest names are given), the two share
            parameters or differ in architecture, or another callback changes the teacher or needs it fixed.
    """

    changes_teacher = True

    def __init__(self, teacher: str = "teacher", student: str = "student") -> None:
        self.teacher = teacher
        self.student = student
        self._teacher = nn.Module()
        self._student = nn.Module()
        self._period: int | None = None
        self._is_apart = False  # brought by another callback: not in the module, nor in its state dict
        self._saved: dict[str, Any] | None = None

    @property
    def teacher_path(self) -> str:
        """The name of the teacher that this callback changes; see `kd_lightning.core.traits`."""
        return self.teacher

    @abstractmethod
    def period(self, trainer: Trainer) -> int:
        """Return the number of the current period."""

    @abstractmethod
    def update_teacher(self, trainer: Trainer, pl_module: LightningModule, period: int) -> None:
        """Update the teacher at the start of a period; called at the start of the fit as well."""

    # ---- Lightning hooks

    @property
    def state_key(self) -> str:
        """Key of the state, one for each pair of networks, so that there can be several."""
        return self._generate_state_key(teacher=self.teacher, student=self.student)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the last period, and the teacher's weights where the module does not save them."""
        return {"period": self._period} | ({"teacher": self._teacher.state_dict()} if self._is_apart else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the number of the last period and the teacher's weights."""
        self._period = state_dict["period"]
        self._saved = state_dict.get("teacher")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find both networks, freeze the teacher and include it in the module's state dict."""
        callbacks = callbacks_of(trainer)
        if stage != "fit":
            if teacher_for(self.student, callbacks) is None:  # to load checkpoints, which have the teacher's weights
                register_teacher(pl_module, self._find(pl_module, self.teacher))
            return
        self._period = self._saved = None
        self._student = self._find(pl_module, self.student)
        brought = teacher_for(self.student, callbacks)
        self._is_apart = brought is not None
        self._teacher = self._find(pl_module, self.teacher) if brought is None else brought
        self._check_networks()
        check_teacher_use(self, callbacks, pl_module)
        if not self._is_apart:
            register_teacher(pl_module, self._teacher)
        include_in_state_dict(freeze(self._teacher))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights of a teacher that the module does not save, after its callback has prepared it."""
        if self._saved is not None:
            self._teacher.load_state_dict(self._saved)
            self._saved = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update the teacher if a period begins; not every resume calls ``on_train_epoch_start``."""
        self.update_if_due(trainer, pl_module)

    # ---- inside

    def update_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the teacher if a period has begun since its last update."""
        period = self.period(trainer)
        if period != self._period:
            self.update_teacher(trainer, pl_module, period)
            self._period = period
            # DistributedDataParallel broadcasts the buffers of the module's own teachers alone.
            if self._is_apart and is_distributed():
                for buffer in self._teacher.buffers():
                    dist.broadcast(buffer, src=0)

    def copy_student(self) -> None:
        """Copy the student's current weights into the teacher."""
        self._teacher.load_state_dict(self._student.state_dict())

    def _find(self, module: LightningModule, name: str) -> nn.Module:
        return find_network(module, name, f"for {type(self).__name__}")

    def _check_networks(self) -> None:
        shared = set(self._teacher.parameters()) & set(self._student.parameters())
        if self._teacher is self._student or shared:
            raise UsageError(
                f"{self.teacher!r} and {self.student!r} share parameters, and there is nothing to learn from: build "
                "the teacher as a separate network"
            )
        try:
            check_same_architecture(self._teacher, self._student)
        except ValueError as error:
            raise UsageError(f"{self.teacher!r} cannot be made from {self.student!r}: {error}") from None
