"""FitNets: regress a layer of the teacher, the hint, from a layer of the student."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_map_widths, check_same_shape, upcast
from kd_lightning.losses.common.connectors import connect
from kd_lightning.losses.common.vectors import squared_error


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared error between the guided features and the hint, over batch and features.

    L = 1 / (2 N D) sum_nd (r(s)_nd - t_nd)^2, where the regressor r is part of `HintLoss` and not of this function

    Adriana Romero et al.: FitNets: Hints for Thin Deep Nets. ICLR 2015 (arXiv:1412.6550), equation 3. The paper sums
    over features: its weight 1 is D here. It first trains the layers up to the guided one by hints alone, then the
    whole student by distillation.

    Other implementations differ: RepDistiller and mdistiller omit the factor 1/2 (their weight 100 is 200 here), have a
    BatchNorm in the regressor, and train with hints and labels together.

    Args:
        student: The regressor's output on the guided layer, (N, ...), of D values a sample.
        teacher: The hint, of the same shape.

    Raises:
        UsageError: The shapes differ, or there are no features.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[[4.0, 0.0]], [[0.0, 2.0]]]]))
        tensor(2.5000)
    """
    check_same_shape(student, teacher)
    return squared_error(upcast(student), upcast(teacher)) / 2


class HintLoss(DistillationLoss):
    """FitNets' hints (Romero et al. 2015, arXiv:1412.6550), with the paper's convolutional regressor; see `hint_loss`.

    The regressor is a convolution without padding, then a ReLU, which is also the nonlinearity of the hint. A kernel of
    size 1 + H_s - H_t maps larger maps of the student to the teacher's size.

    Args:
        student_channels: Width of the guided layer.
        teacher_channels: Width of the hint.
        kernel_size: Kernel size of the regressor.

    Raises:
        UsageError: The kernel size is below 1; at a call: the features are not maps, or have other widths or sizes.
    """

    takes_maps = True

    def __init__(self, student_channels: int, teacher_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        if kernel_size < 1:
            raise UsageError(f"kernel_size={kernel_size} must be at least 1")
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.kernel_size = kernel_size
        self.connector = nn.Sequential(nn.Conv2d(student_channels, teacher_channels, kernel_size), nn.ReLU())

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W); `target` is unused."""
        check_map_widths(student, teacher, self.student_channels, self.teacher_channels)
        if any(s + 1 - self.kernel_size != t for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True)):
            raise UsageError(
                f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} differ in size "
                f"after the regressor with kernel_size={self.kernel_size}: set it to 1 + H_s - H_t, and address layers "
                "where the student's map is at least as large"
            )
        return hint_loss(connect(self.connector, student), teacher)
