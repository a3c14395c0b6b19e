"""Factor transfer: the student's translated features learn the teacher's compressed features, the factor."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_maps, check_width
from kd_lightning.losses.common.connectors import connect, convolutions
from kd_lightning.losses.common.maps import pool_to_same_size
from kd_lightning.losses.common.vectors import unit


def factor_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute error between factors scaled to length one, over batch and features.

    L = 1 / (N D) sum_n ||s_n / ||s_n||_2 - t_n / ||t_n||_2||_1

    Jangho Kim, SeongUk Park, Nojun Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS
    2018 (arXiv:1802.04977), with p = 1. The mean is that of the authors' code, whose weight beta is 500; the paper's
    formula sums over features. The larger map is first averaged down to the smaller one's size.

    Other implementations: RepDistiller compares attention maps of the factors (the mean of the squared channels), with
    weight 200; torchdistill computes the same as here.

    Args:
        student: The student's factor, maps (N, C, H, W), of D values a sample.
        teacher: The teacher's factor, maps (N, C, H', W').

    Raises:
        UsageError: They are not maps of the same N images and width.

    Example:
        >>> import torch
        >>> factor_transfer_loss(torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[3.0, 4.0]]]]))
        tensor(0.6000)
    """
    student, teacher = pool_to_same_size(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must have the same "
            "number of channels: set the translator's width to that of the teacher's factor"
        )
    return (unit(student.flatten(1)) - unit(teacher.flatten(1))).abs().mean()


class FactorTransferLoss(DistillationLoss):
    """Factor transfer (Kim et al. 2018, arXiv:1802.04977), with the student's translator; see `factor_transfer_loss`.

    The teacher's factor is the output of a `Paraphraser`'s encoder on one of its layers: a term addresses it as
    ``paraphraser.encoder``. The translator has the same form: three 3x3 convolutions with BatchNorm and LeakyReLU.

    Args:
        student_channels: Width of the student's layer.
        factor_channels: Width of the teacher's factor.

    Raises:
        UsageError: At a call: the features are not maps of the same N images, or have other widths.
    """

    takes_maps = True

    compares_samples = True  # in the translator's BatchNorm

    def __init__(self, student_channels: int, factor_channels: int) -> None:
        super().__init__()
        self.student_channels = student_channels
        self.factor_channels = factor_channels
        self.translator = convolutions(student_channels, student_channels, factor_channels, factor_channels)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of the student's maps and the teacher's factor, (N, C, H, W); `target` is unused."""
        check_maps(student, teacher)
        check_width(student, self.student_channels, "student")
        return factor_transfer_loss(connect(self.translator, student), teacher)
