"""Knowledge review: fuse the student's deeper layers into its shallower ones before comparing with the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_maps, check_same_shape, upcast
from kd_lightning.losses.common.connectors import Features, check_channel_lists, connect, layer_pairs, pairs_of_maps
from kd_lightning.losses.common.vectors import squared_error

_LEVELS = (4, 2, 1)


def review_kd_loss(student: Features, teacher: Features) -> Tensor:
    """Hierarchical context loss: mean squared error of maps at several pooled sizes, summed over layers.

    L = sum_i sum_l w_l MSE(pool_l(s_i), pool_l(t_i)) / sum_l w_l with w = 1, 1/2, 1/4, 1/8 for the map itself and for
    4x4, 2x2 and 1x1; a pooled size that is not smaller than the map is skipped, and the next one takes its weight

    Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia: Distilling Knowledge via Knowledge Review. CVPR 2021
    (arXiv:2104.09044). The authors' weights lie between 0.6 and 8 on CIFAR-100, increased linearly over the first 20
    of 240 epochs. On square maps the formula equals torchdistill's and mdistiller's; on others they compare a pooled
    size with the height alone, and this one with the shorter side.

    Args:
        student: The student's fused maps (N, C, H, W), or a list of those of several layers.
        teacher: Maps of the same shapes.

    Raises:
        UsageError: The shapes or numbers of layers differ, or the features are not maps.

    Example:
        >>> review_kd_loss(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0))
        tensor(9.)
    """
    return torch.stack([_hierarchical(s, t) for s, t in layer_pairs(student, teacher)]).sum()


class ReviewKDLoss(DistillationLoss):
    """Knowledge review (Chen et al. 2021, arXiv:2104.09044) of several layers; see `review_kd_loss`.

    From the deepest layer to the shallowest, a fusion module combines the student's map with the output of the next
    deeper module: a 1x1 convolution and BatchNorm to a common width, two sigmoid attention maps computed from both, and
    their weighted sum. That sum, at the teacher's size, is passed to the next shallower module, and through a 3x3
    convolution and BatchNorm to the comparison with the teacher. Maps are resized to the nearest neighbour. The authors
    compare features before their ReLU, and take the pooled features as the deepest layer.

    Args:
        student_channels: Widths of the student's layers, shallow to deep.
        teacher_channels: Widths of the teacher's layers.
        channels: The common width; if not given, the width of the student's deepest layer, at most 512.

    Raises:
        UsageError: The two lists differ in length or are empty; at a call: the number of layers or their widths differ,
            or they are not maps of the same N images.
    """

    takes_maps = True

    compares_samples = True  # in the fusions' BatchNorm

    def __init__(self, student_channels: list[int], teacher_channels: list[int], channels: int | None = None) -> None:
        super().__init__()
        check_channel_lists(student_channels, teacher_channels)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        channels = channels or min(512, student_channels[-1])
        deepest = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            _Fusion(s, channels, t, fuses=i < deepest)
            for i, (s, t) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student: Features, teacher: Features, target: Tensor | None = None) -> Tensor:
        """Compute the loss of feature maps (N, C, H, W), a list on each side; `target` is unused."""
        pairs = pairs_of_maps(student, teacher, self.student_channels, self.teacher_channels)
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, (s, t) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            fused, deeper = fusion(s, deeper, t.shape[2:])
            reviewed.insert(0, fused)
        return review_kd_loss(reviewed, [t for _, t in pairs])


class _Fusion(nn.Module):
    def __init__(self, student_channels: int, channels: int, teacher_channels: int, fuses: bool) -> None:
        super().__init__()
        self.narrow = _convolution(student_channels, channels, kernel_size=1)
        self.widen = _convolution(channels, teacher_channels, kernel_size=3)
        self.attention = nn.Sequential(nn.Conv2d(2 * channels, 2, kernel_size=1), nn.Sigmoid()) if fuses else None

    def forward(self, features: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the map to compare with the teacher's, and the fused map for the next shallower module."""
        own = connect(self.narrow, features)
        if self.attention is not None and deeper is not None:
            deeper = _nearest(deeper, own.shape[2:])
            attention = connect(self.attention, torch.cat([own, deeper], dim=1))  # (N, 2, H, W)
            own = own * attention[:, :1] + deeper * attention[:, 1:]
        own = _nearest(own, size)
        return connect(self.widen, own), own


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _nearest(features: Tensor, size: torch.Size) -> Tensor:
    return features if features.shape[2:] == size else functional.interpolate(features, list(size), mode="nearest")


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    check_maps(student, teacher)
    check_same_shape(student, teacher)
    student, teacher = upcast(student), upcast(teacher)
    loss, weight, weights = squared_error(student, teacher), 1.0, 1.0
    for size in _LEVELS:
        if size < min(student.shape[2:]):
            weight /= 2
            weights += weight
            s, t = (functional.adaptive_avg_pool2d(side, size) for side in (student, teacher))
            loss = loss + weight * squared_error(s, t)
    return loss / weights
