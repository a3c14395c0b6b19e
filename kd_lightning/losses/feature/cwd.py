"""Channel-wise distillation: match each channel's distribution over positions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_map_widths, check_temperature
from kd_lightning.losses.common.connectors import connect
from kd_lightning.losses.common.divergence import divergences
from kd_lightning.losses.common.maps import pool_to_same_size


def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of softened distributions over positions, averaged over batch and channels.

    L = T^2 / (N C) sum_nc KL(softmax_p(t_nc / T) || softmax_p(s_nc / T))

    Changyong Shu, Yifan Liu, Jianfei Gao, Zheng Yan, Chunhua Shen: Channel-wise Knowledge Distillation for Dense
    Prediction. ICCV 2021 (arXiv:2011.13256). The authors' weight is 3 on maps of logits and 50 on features, with T = 4
    for both. The larger map is first averaged down to the smaller one's size.

    Args:
        student: Feature maps (N, C, H, W) with the teacher's width, or maps of logits.
        teacher: Feature maps (N, C, H', W').
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: They are not maps of the same N images and width, or the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> cwd_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[4.0, 0.0]]]]), temperature=1.0)
        tensor(0.6031)
    """
    check_temperature(temperature)
    student, teacher = pool_to_same_size(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must have the same "
            "number of channels: use CWDLoss, which has a connector"
        )
    log_student, log_teacher = (
        functional.log_softmax(side.flatten(0, 1).flatten(1) / temperature, dim=1) for side in (student, teacher)
    )
    return divergences(log_student, log_teacher, temperature).mean() * temperature**2


class CWDLoss(DistillationLoss):
    """Channel-wise distillation (Shu et al. 2021, arXiv:2011.13256); see `cwd_loss`.

    Where the widths differ, a 1x1 convolution maps the student's to the teacher's, as in the paper; the authors' code
    for features adds BatchNorm and ReLU.

    Args:
        student_channels: Width of the student's layer.
        teacher_channels: Width of the teacher's layer.
        temperature: T > 0; higher is softer.

    Raises:
        UsageError: The temperature is not a finite number above 0; at a call: the features are not maps of the same N
            images, or have other widths.
    """

    takes_maps = True

    def __init__(self, student_channels: int, teacher_channels: int, temperature: float = 4.0) -> None:
        super().__init__()
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.temperature = check_temperature(temperature)
        alike = student_channels == teacher_channels
        self.connector = nn.Identity() if alike else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W); `target` is unused."""
        check_map_widths(student, teacher, self.student_channels, self.teacher_channels)
        return cwd_loss(connect(self.connector, student), teacher, self.temperature)
