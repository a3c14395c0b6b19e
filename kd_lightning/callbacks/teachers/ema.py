"""The EMA teacher (mean teacher): an exponential moving average of the student."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from kd_lightning.callbacks.teachers.evolving import EvolvingTeacher
from kd_lightning.core.errors import UsageError
from kd_lightning.core.progress import optimizer_step
from kd_lightning.weights.averaging import update_ema


class EMATeacher(EvolvingTeacher):
    """Update the teacher after each optimizer step, as an exponential moving average of the student.

    theta' <- m_t theta' + (1 - m_t) theta,    m_t = min(1 - 1/(t + 1), momentum) after step t = 1, 2, ...

    Antti Tarvainen, Harri Valpola: Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results. NIPS, 2017 (arXiv:1703.01780). The teacher starts as a copy of the
    student, and with the warm-up of the authors' PyTorch code it is the plain mean of all weights so far in the first
    1 / (1 - momentum) steps; their TensorFlow code uses 0.99 at first and then 0.999. Buffers are averaged as well
    (`update_ema`).

    The authors' teacher is in training mode and gets the images under a separate augmentation; this one is in eval mode
    and gets the teacher's input of the batch. Accumulated batches are one step; a step that fp16 skips counts.

    Args:
        momentum: The momentum m, in [0, 1).
        warm_up: True for m_t as above; False for m_t = momentum from the start.
        teacher: The dotted name of the teacher in the LightningModule.
        student: The dotted name of the network that it averages.

    Raises:
        UsageError: `momentum` is not in [0, 1); at the start of the fit, as for `EvolvingTeacher`, or the teacher is in
            half precision, in which such small updates are rounded off.

    Example:
        >>> teacher = EMATeacher(momentum=0.7)
        >>> [round(teacher.momentum_after(step), 3) for step in (1, 2, 3, 4)]
        [0.5, 0.667, 0.7, 0.7]
    """

    def __init__(
        self, momentum: float = 0.999, warm_up: bool = True, teacher: str = "teacher", student: str = "student"
    ) -> None:
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum={momentum} must lie in [0, 1): at 1 the teacher would never change")
        super().__init__(teacher, student)
        self.momentum = momentum
        self.warm_up = warm_up

    def momentum_after(self, step: int) -> float:
        """Return m_t after an optimizer step, counted from 1."""
        return min(1 - 1 / (step + 1), self.momentum) if self.warm_up else self.momentum

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the teacher is not in half precision."""
        for parameter in self._teacher.parameters():
            if parameter.dtype.itemsize < 4:
                raise UsageError(
                    f"{self.teacher!r} is in {parameter.dtype}, in which an average does not change: "
                    "train with precision 32-true, bf16-mixed or 16-mixed"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the teacher after a step; if the run stops before, the start of the next batch does it."""
        self.update_if_due(trainer, pl_module)

    def period(self, trainer: Trainer) -> int:
        """Return the number of the optimizer step."""
        return optimizer_step(trainer)

    def update_teacher(self, trainer: Trainer, pl_module: LightningModule, period: int) -> None:
        """Copy the student at the start of the fit, and average afterwards."""
        if self._period is None:
            self.copy_student()
        else:
            update_ema(self._teacher, self._student, self.momentum_after(period))
