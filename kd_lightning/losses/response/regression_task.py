"""The task loss of real values: mean squared error."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.targets import of_one_shape
from kd_lightning.losses.common.vectors import squared_error


def regression_task_loss(student: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between the student's outputs and real values, averaged over all of them.

    L = 1 / (N D) sum_nd (z_nd - t_nd)^2

    Args:
        student: Outputs (N, D), (N, 1), (N,), or maps of any shape.
        target: Real values of the student's shape; of one value a sample also (N,) beside (N, 1).

    Raises:
        UsageError: The shapes do not fit each other, or the target is no floating-point tensor.

    Example:
        >>> import torch
        >>> regression_task_loss(torch.zeros(2, 1), torch.tensor([1.0, 3.0]))
        tensor(5.)
    """
    student, target = of_one_shape(
        student, target, "real values, one for each output; class indices (N,) need TaskLoss"
    )
    if not target.is_floating_point():
        raise UsageError(
            f"outputs {tuple(student.shape)} and target {tuple(target.shape)} of {target.dtype} do not fit: real "
            "values are floating-point; class indices (N,) need TaskLoss"
        )
    return squared_error(upcast(student), upcast(target))


class RegressionTaskLoss(DistillationLoss):
    """Mean squared error against real values; see `regression_task_loss`.

    Its term has no teacher: ``Term(RegressionTaskLoss(), teacher=None)``; `LogitMSELoss` distils the teacher's values.
    """

    label_kind = "values"
    needs_target = True
    takes_rows = False

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Compute the task loss of outputs and real values of one shape; `teacher` is unused."""
        return regression_task_loss(student, target)
