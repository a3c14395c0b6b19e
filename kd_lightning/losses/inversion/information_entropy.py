"""Information entropy loss: spread the predictions of a batch evenly over the classes."""

from __future__ import annotations

import math

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_one_side, upcast
from kd_lightning.losses.common.classes import NO_CLASS


def information_entropy_loss(student: Tensor) -> Tensor:
    """Negative entropy, in decimal digits, of a batch's mean probabilities.

    L = sum_c p_c log10 p_c with p = 1/N sum_n softmax(z_n), smallest where all classes are equally frequent

    Hanting Chen et al.: Data-Free Learning of Student Networks. ICCV 2019 (arXiv:1904.01186), applied to a teacher's
    logits of generated inputs. The base is that of the authors' code, with weight 5; the paper writes 1/k before a sum
    of natural logarithms, which is ln 10 / k times this loss.

    Args:
        student: Logits (N, C) of at least two samples.

    Raises:
        UsageError: The logits are not (N, C) with N >= 2 and C >= 2.

    Example:
        >>> import torch
        >>> round(information_entropy_loss(torch.zeros(2, 10)).item(), 4)
        -1.0
    """
    check_one_side(student, at_least=2)
    logs = upcast(student).log_softmax(dim=1).clamp(min=NO_CLASS)  # a class of probability 0 contributes 0
    logs = logs.logsumexp(dim=0) - math.log(len(student))
    return (logs.exp() * logs).sum() / math.log(10)


class InformationEntropyLoss(DistillationLoss):
    """Negative entropy of a batch's classes (Chen et al. 2019, arXiv:1904.01186); see `information_entropy_loss`.

    To apply it to a teacher: ``Term(InformationEntropyLoss(), student=None)``.
    """

    takes_rows = True
    compares_samples = True

    def forward(self, student: Tensor, teacher: None = None, target: Tensor | None = None) -> Tensor:
        """Compute the loss of logits (N, C); the other arguments are unused."""
        return information_entropy_loss(student)
