"""The momentum teacher: a moving average of the student."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher
from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import optimizer_step
from kd_lightning.weights.averaging import update_ema


class EMATeacher(EvolvingTeacher):
    """After each optimizer step the teacher moves a little towards the student.

    theta' <- m_t theta' + (1 - m_t) theta,    m_t = min(1 - 1/(t + 1), momentum) after step t = 1, 2, ...

    Antti Tarvainen, Harri Valpola: Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results. NIPS, 2017 (arXiv:1703.01780). The teacher begins as a copy of the student,
    and the warm-up, from the authors' PyTorch code, makes it the plain mean of all weights so far in the first
    1 / (1 - momentum) steps; their TensorFlow code has 0.99 for a while and then 0.999. Buffers are averaged as well
    (`update_ema`).

    The authors' teacher stays in training mode and sees the images under an augmentation of its own; ours is in eval
    and sees the teacher's view of the batch. Accumulated batches are one step; a step that fp16 skips counts.

    Args:
        momentum: m, in [0, 1).
        warm_up: Whether m_t rises to `momentum`, or is that from the start.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it averages.

    Raises:
        UsageError: `momentum` is not in [0, 1); at the start of the fit, as for `EvolvingTeacher`, or the teacher is in
            half precision, which such small steps do not change.

    Example:
        >>> teacher = EMATeacher(momentum=0.7)
        >>> [round(teacher.momentum_after(step), 3) for step in (1, 2, 3, 4)]
        [0.5, 0.667, 0.7, 0.7]
    """

    def __init__(
        self, momentum: float = 0.999, warm_up: bool = True, teacher: str = "teacher", student: str = "student"
    ) -> None:
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum={momentum} must lie in [0, 1): at 1 the teacher would never move")
        super().__init__(teacher, student)
        self.momentum = momentum
        self.warm_up = warm_up

    def momentum_after(self, step: int) -> float:
        """m_t after an optimizer step, counted from 1."""
        return min(1 - 1 / (step + 1), self.momentum) if self.warm_up else self.momentum

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to average in half precision."""
        for parameter in self._teacher.parameters():
            if parameter.dtype.itemsize < 4:
                raise UsageError(
                    f"{self.teacher!r} is in {parameter.dtype}, in which an average does not move: "
                    "train with precision 32-true, bf16-mixed or 16-mixed"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the teacher after a step; should the run stop before this, the next batch's start makes up for it."""
        self.follow(trainer, pl_module)

    def moment(self, trainer: Trainer) -> int:
        """The optimizer step."""
        return optimizer_step(trainer)

    def move(self, trainer: Trainer, pl_module: LightningModule, moment: int) -> None:
        """Copies the student where the fit begins, and averages after that."""
        if self._moment is None:
            self.copy_student()
        else:
            update_ema(self._teacher, self._student, self.momentum_after(moment))
