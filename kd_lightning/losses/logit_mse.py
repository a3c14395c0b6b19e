"""Regression of the teacher's logits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.losses.checks import check_logits, upcast


def logit_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between logits, over batch and classes.

    L = 1 / (N C) sum_nc (s_nc - t_nc)^2

    Lei Jimmy Ba, Rich Caruana: Do Deep Nets Really Need to be Deep? NIPS 2014 (arXiv:1312.6184). The paper writes half
    the sum over classes: its weight w is C / 2 times the same weight here.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> logit_mse_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]))
        tensor(8.)
    """
    check_logits(student, teacher)
    return functional.mse_loss(upcast(student), upcast(teacher))


class LogitMSELoss(nn.Module):
    """Mean squared error between logits (Ba and Caruana 2014, arXiv:1312.6184); see `logit_mse_loss`."""

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C); `target` is not looked at."""
        return logit_mse_loss(student, teacher)
