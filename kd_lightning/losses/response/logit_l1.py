"""Mean absolute error between logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_outputs, upcast


def logit_l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute error between logits, over batch and classes: L = 1 / (N C) sum_nc |s_nc - t_nc|.

    Gongfan Fang, Jie Song, Chengchao Shen, Xinchao Wang, Da Chen, Mingli Song: Data-Free Adversarial Distillation. 2019
    (arXiv:1912.11006). Its gradient does not vanish where the student is close to the teacher, which the training of an
    input generator depends on.

    Args:
        student: Logits (N, C), or real-valued outputs (N, D), D = 1 included.
        teacher: Of the student's shape.

    Raises:
        UsageError: The shapes differ.

    Example:
        >>> import torch
        >>> logit_l1_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]))
        tensor(2.)
    """
    check_outputs(student, teacher, "logits")
    return functional.l1_loss(upcast(student), upcast(teacher))


class LogitL1Loss(DistillationLoss):
    """Mean absolute error between logits (Fang et al. 2019, arXiv:1912.11006); see `logit_l1_loss`."""

    takes_rows = True

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); `target` is unused."""
        return logit_l1_loss(student, teacher)
