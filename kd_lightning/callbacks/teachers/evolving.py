"""The base of callbacks that build a teacher from its student's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.distributed import is_distributed
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze, include_in_state_dict
from kd_lightning.core.lookup import find_network
from kd_lightning.core.teacher_holder import register_teacher
from kd_lightning.core.traits import check_teacher_use, teacher_for
from kd_lightning.weights.averaging import check_same_architecture


class EvolvingTeacher(Callback, ABC):
    """A teacher that is made of its student, again and again: another network of the same architecture.

    It stays frozen, in eval and out of the optimizer; as it changes, it is in the checkpoints. A subclass divides the
    training into moments, numbered by a function of the optimizer step or epoch, and says what happens when one begins.
    The number of the last one is in the checkpoints too: wherever a run is resumed, none is missed or comes twice.

    If another callback brings a teacher for this student, as `Distillation` does, that is the one.

    Args:
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it is made of.

    Raises:
        UsageError: At the start of the fit: there is no such network (the nearest names are given), both are not two
            networks of one architecture, or another callback changes the teacher or needs it fixed.
    """

    changes_teacher = True

    def __init__(self, teacher: str = "teacher", student: str = "student") -> None:
        self.teacher = teacher
        self.student = student
        self._teacher = nn.Module()
        self._student = nn.Module()
        self._moment: int | None = None
        self._is_apart = False  # from the module and its state dict
        self._saved: dict[str, Any] | None = None

    @property
    def teacher_path(self) -> str:
        """The name of the teacher that this changes; see `kd_lightning.core.traits`."""
        return self.teacher

    @abstractmethod
    def moment(self, trainer: Trainer) -> int:
        """The number of the moment that this is."""

    @abstractmethod
    def move(self, trainer: Trainer, pl_module: LightningModule, moment: int) -> None:
        """What happens at the beginning of a moment, and once more where the fit begins."""

    # ---- what Lightning calls

    @property
    def state_key(self) -> str:
        """One state a pair, so that there can be several."""
        return self._generate_state_key(teacher=self.teacher, student=self.student)

    def state_dict(self) -> dict[str, Any]:
        """The last moment; the teacher, too, where the module does not save it."""
        return {"moment": self._moment} | ({"teacher": self._teacher.state_dict()} if self._is_apart else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at that moment."""
        self._moment = state_dict["moment"]
        self._saved = state_dict.get("teacher")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds both networks, and makes the teacher one that is saved but does not learn."""
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if stage != "fit":
            if teacher_for(self.student, callbacks) is None:  # a checkpoint has the teacher, whatever it is loaded for
                register_teacher(pl_module, self._find(pl_module, self.teacher))
            return
        self._moment = self._saved = None
        self._student = self._find(pl_module, self.student)
        brought = teacher_for(self.student, callbacks)
        self._is_apart = brought is not None
        self._teacher = self._find(pl_module, self.teacher) if brought is None else brought
        self._refuse_one_network()
        check_teacher_use(self, callbacks, pl_module)
        if not self._is_apart:
            register_teacher(pl_module, self._teacher)
        include_in_state_dict(freeze(self._teacher))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives a teacher that the module does not save the weights that it had: after others have prepared it."""
        if self._saved is not None:
            self._teacher.load_state_dict(self._saved)
            self._saved = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a moment: here, as not every resume calls ``on_train_epoch_start``."""
        self.follow(trainer, pl_module)

    # ---- inside

    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the teacher if a moment has begun since it was moved."""
        moment = self.moment(trainer)
        if moment != self._moment:
            self.move(trainer, pl_module, moment)
            self._moment = moment
            if self._is_apart and is_distributed():  # DistributedDataParallel sees to the others'
                for buffer in self._teacher.buffers():
                    dist.broadcast(buffer, src=0)

    def copy_student(self) -> None:
        """Copy the student's present weights into the teacher."""
        self._teacher.load_state_dict(self._student.state_dict())

    def _find(self, module: LightningModule, name: str) -> nn.Module:
        return find_network(module, name, f"for {type(self).__name__}")

    def _refuse_one_network(self) -> None:
        shared = set(self._teacher.parameters()) & set(self._student.parameters())
        if self._teacher is self._student or shared:
            raise UsageError(
                f"{self.teacher!r} and {self.student!r} share parameters, so that there is nothing to learn from: "
                "build the teacher as a network of its own"
            )
        try:
            check_same_architecture(self._teacher, self._student)
        except ValueError as error:
            raise UsageError(f"{self.teacher!r} cannot be made of {self.student!r}: {error}") from None
