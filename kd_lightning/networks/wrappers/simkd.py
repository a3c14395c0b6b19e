"""SimKD: a student that reuses its teacher's classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze
from kd_lightning.networks.wrappers.early_exit import EarlyExit


class SimKD(nn.Module):
    """Combine a student up to one of its layers, a projector to the teacher's width, and the teacher's classifier.

    z = W_T pool(projector(F_S)) + b_T, trained only by 1/D ||projector(F_S) - F_T||^2

    Defang Chen, Jian-Ping Mei, Hailin Zhang, Can Wang, Yan Feng, Chun Chen: Knowledge Distillation with the Reused
    Teacher Classifier. CVPR 2022 (arXiv:2203.14001). The classifier is frozen and, unlike a teacher, part of the state
    dict, because it is exported with the student. It is newly initialised: `kd_lightning.weights.copying` copies the
    teacher's weights into it. The student's layers above `layer`, its own classifier included, are removed.

    Layer paths: ``features``, which a `FeatureMSELoss` compares with the teacher's last feature map, ``features.trunk``
    with the student's layers, ``features.head``, the projector, ``pool`` and ``classifier``. The projector is that of
    the authors: a 1x1 convolution to a fraction of the teacher's channels, then a 3x3 and a 1x1 convolution, each with
    BatchNorm and ReLU.

    Args:
        student: The student; its layers up to `layer` are used, not copied.
        layer: Dotted name of the layer whose output is its last feature map.
        student_channels: Channels of that map.
        teacher_channels: Channels of the teacher's last feature map.
        num_classes: Width of the logits.
        factor: Ratio of the teacher's width to the projector's inner width; the authors use 2, and compare 1 to 8.
        pool: Height and width to which the teacher pools its last feature map: 2 for `ConvNet`, 1 where it is averaged
            over all positions.
        size: Height and width to which the student's map is averaged down, if the teacher's is smaller.

    Shapes:
        Input: that of the student; output: logits (N, num_classes).

    Raises:
        UsageError: The factor leaves no channel, or the student cannot be cut off at `layer` (see `EarlyExit`); at a
            call: the layer's output is not (N, student_channels, H, W).

    Example:
        >>> import torch
        >>> from kd_lightning.networks import StudentConvNet
        >>> network = SimKD(StudentConvNet(), "conv.5", student_channels=32, teacher_channels=128, pool=2)
        >>> network(torch.zeros(2, 3, 28, 28)).shape, network.classifier
        (torch.Size([2, 10]), Linear(in_features=512, out_features=10, bias=True))
    """

    def __init__(
        self,
        student: nn.Module,
        layer: str,
        student_channels: int,
        teacher_channels: int,
        num_classes: int = 10,
        factor: int = 2,
        pool: int = 1,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= factor <= teacher_channels:
            raise UsageError(f"factor={factor} must lie between 1 and teacher_channels={teacher_channels}, e.g. 2")
        projector = _projector(student_channels, teacher_channels, teacher_channels // factor, size)
        self.features = EarlyExit(student, layer, projector)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = freeze(nn.Linear(teacher_channels * pool**2, num_classes))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits, (N, num_classes)."""
        return self.classifier(self.pool(self.features(*args, **kwargs)).flatten(1))


class _Map(nn.Module):
    """Check the shape of a feature map, and average it down to `size` if that is given."""

    def __init__(self, channels: int, size: int | None) -> None:
        super().__init__()
        self.channels = channels
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise UsageError(
                f"the student's layer gives {tuple(features.shape)}, not (N, {self.channels}, H, W): "
                "set student_channels to its width, or name the layer of its last feature map"
            )
        return features if self.size is None else functional.adaptive_avg_pool2d(features, self.size)


def _projector(student_channels: int, teacher_channels: int, narrow: int, size: int | None) -> nn.Module:
    return nn.Sequential(
        _Map(student_channels, size),
        nn.Conv2d(student_channels, narrow, kernel_size=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, narrow, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(),
    )
