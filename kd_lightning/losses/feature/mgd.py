"""Masked generative distillation: generate the teacher's features from the student's partly masked ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_fraction, check_map_widths, check_same_shape, upcast
from kd_lightning.losses.common.connectors import connect


def mgd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of generated features, summed over features, averaged over the batch.

    L = 1/N ||G(mask * align(s)) - t||^2, where the mask and the generator G are part of `MGDLoss`, not of this function

    Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan: Masked Generative Distillation. ECCV 2022
    (arXiv:2205.01529). The authors' weights for this sum over features: 7e-5 for classification (of the last map, 512 x
    7 x 7), 2e-5 for detection.

    Args:
        student: The generated features, (N, ...).
        teacher: Features of the same shape.

    Raises:
        UsageError: The shapes differ, or there are no features.

    Example:
        >>> mgd_loss(torch.zeros(2, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]], [[[1.0, 0.0]]]]))
        tensor(13.)
    """
    check_same_shape(student, teacher)
    return (upcast(student) - upcast(teacher)).square().flatten(1).sum(dim=1).mean()


class MGDLoss(DistillationLoss):
    """Masked generative distillation (Yang et al. 2022, arXiv:2205.01529) of one layer; see `mgd_loss`.

    A 1x1 convolution maps the student's map to the teacher's width if they differ. Then a random part of it, drawn
    at each call, is set to zero, and two 3x3 convolutions with a ReLU between them generate the teacher's map. The
    remaining values are not scaled up.

    Args:
        student_channels: Width of the student's layer.
        teacher_channels: Width of the teacher's layer.
        ratio: Expected share that is masked: 0.15 for classification, 0.65 for detection in the authors' code.
        spatial: Mask positions, the same for all channels, as in the paper and the authors' detection code, instead of
            whole channels, as in their classification code.

    Raises:
        UsageError: The ratio is outside [0, 1]; at a call: the features are not maps of one size of the same N images,
            or have other widths.
    """

    takes_maps = True

    def __init__(
        self, student_channels: int, teacher_channels: int, ratio: float = 0.15, spatial: bool = False
    ) -> None:
        super().__init__()
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.ratio = check_fraction(ratio, "ratio")
        self.spatial = spatial
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W); `target` is unused."""
        check_map_widths(student, teacher, self.student_channels, self.teacher_channels)
        if student.shape[2:] != teacher.shape[2:]:
            raise UsageError(
                f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must have the "
                "same height and width: address layers of one size"
            )
        aligned = connect(self.align, student)
        n, c, h, w = aligned.shape
        drawn = torch.rand((n, 1, h, w) if self.spatial else (n, c, 1, 1), device=aligned.device)
        return mgd_loss(connect(self.generator, aligned * (drawn >= self.ratio)), teacher)
