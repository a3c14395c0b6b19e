"""Simple recipe distillation: the logarithm of a sum of high powers between projected, normalised features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_same_shape, check_samples, check_width, upcast
from kd_lightning.losses.common.connectors import connect
from kd_lightning.losses.common.vectors import pooled


def srd_loss(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    """Logarithm of the summed powers of differences between features normalised over the batch.

    L = log(1e-5 + sum_nd |b(s)_nd - b(t)_nd|^exponent) with b(f)_d = (f_d - mean f_d) / sqrt(variance f_d + 1e-4)

    Roy Miles, Krystian Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024
    (arXiv:2303.11098). The logarithm is a soft maximum: its gradient is dominated by the largest differences, and does
    not depend on the size of the batch or of the features. In the authors' code for ImageNet the weight is 2, beside
    cross-entropy and KL divergence (T = 1) with weight 1 each; torchdistill includes the KL term in the same loss. The
    1e-5, from other code of the authors, keeps the loss finite where student and teacher are equal.

    Args:
        student: The student's features after a projector, (N, D).
        teacher: Features (N, D).
        exponent: The power, above 1: the paper's alpha.

    Raises:
        UsageError: The shapes differ, there is only one sample, or the exponent is not above 1.

    Example:
        >>> import torch
        >>> srd_loss(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-9.0], [9.0]]))
        tensor(3.4656)
    """
    _check_exponent(exponent)
    check_same_shape(student, teacher)
    check_samples(student, teacher)
    difference = _normalised(student) - _normalised(teacher)
    if exponent % 2:
        difference = difference.abs()
    return (difference.pow(exponent).sum() + 1e-5).log()


class SRDLoss(DistillationLoss):
    """Simple recipe distillation (Miles, Mikolajczyk 2024, arXiv:2303.11098); see `srd_loss`.

    Maps are averaged over positions. The projector is a linear layer without bias, which the normalisation would
    remove.

    Args:
        student_channels: Width of the student's features.
        teacher_channels: Width of the teacher's features.
        exponent: The power, above 1: the paper's alpha.

    Raises:
        UsageError: The exponent is not above 1; at a call: the features are not (N, C) or (N, C, H, W) of the same N
            and these widths, or there is only one sample.
    """

    compares_samples = True

    def __init__(self, student_channels: int, teacher_channels: int, exponent: float = 4.0) -> None:
        super().__init__()
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.exponent = _check_exponent(exponent)
        self.connector = nn.Linear(student_channels, teacher_channels, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of features (N, C) or maps (N, C, H, W); `target` is unused."""
        check_samples(student, teacher)
        check_width(student, self.student_channels, "student")
        check_width(teacher, self.teacher_channels, "teacher")
        # Normalisation removes the mean after the projector anyway; removing it first loses less to rounding.
        student, teacher = (pooled(_centred(side)) for side in (student, teacher))
        return srd_loss(connect(self.connector, student), teacher, self.exponent)


def _centred(features: Tensor) -> Tensor:
    """Subtract each channel's mean over samples and positions; the difference of close numbers is exact."""
    mean = upcast(features.detach()).mean(dim=[0, *range(2, features.dim())], keepdim=True)
    return features - mean


def _normalised(features: Tensor) -> Tensor:
    return functional.batch_norm(upcast(features), None, None, training=True, eps=1e-4)


def _check_exponent(exponent: float) -> float:
    if not 1 < exponent < float("inf"):
        raise UsageError(f"exponent={exponent} must be a finite number above 1, e.g. 4.0")
    return exponent
