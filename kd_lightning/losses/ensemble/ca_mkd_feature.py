"""Confidence-aware distillation of features, weighted by how well each teacher classifies the student's features."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import exclude_from_state_dict, freeze
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import upcast
from kd_lightning.losses.common.connectors import connect, convolution
from kd_lightning.losses.common.vectors import squared_error
from kd_lightning.losses.ensemble.ca_mkd import confidences


def ca_mkd_feature_loss(student: list[Tensor], teacher: list[Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of feature maps, weighted on each sample by the teachers' cross-entropies of the student's.

    L = 1/N sum_n sum_k w_nk mean((t_nk - s_nk)^2)

    w_nk = (1 - exp(L_nk) / sum_j exp(L_nj)) / (K - 1), with the cross-entropy L_nk of teacher k's classifier on the
    student's features of sample n

    Hailin Zhang, Defang Chen, Can Wang: Confidence-Aware Multi-Teacher Knowledge Distillation. ICASSP 2022
    (arXiv:2201.00007). The error is a mean over a map, and gradients also flow through the weights, both as in the
    authors' code, which divides by K once more (its weight w is w / K here) and omits this loss in the first epoch.

    Args:
        student: The outputs of K connectors on the student's features, (N, C_k, H_k, W_k) each.
        teacher: The teachers' features, of the same shapes.
        logits: The outputs of the teachers' classifiers on the student's features, (N, K, C).
        target: Class indices (N,).

    Raises:
        UsageError: The shapes do not fit each other, or there is only one teacher.

    Example:
        >>> maps = [torch.zeros(1, 2, 1, 1), torch.zeros(1, 3, 1, 1)]
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> ca_mkd_feature_loss(maps, [maps[0] + 1, maps[1] + 2], logits, torch.tensor([0]))
        tensor(1.0540)
    """
    if [part.shape for part in student] != [part.shape for part in teacher]:
        raise UsageError(
            f"student features {[tuple(part.shape) for part in student]} and teacher features "
            f"{[tuple(part.shape) for part in teacher]} must have the same shapes, one for each teacher: "
            "use one connector for each"
        )
    errors = [
        squared_error(upcast(s), upcast(t), reduction="none").flatten(1).mean(dim=1)
        for s, t in zip(student, teacher, strict=True)
    ]
    return (confidences(logits, target) * torch.stack(errors, dim=1)).sum(dim=1).mean()


class CAMKDFeatureLoss(DistillationLoss):
    """Confidence-aware distillation of features (Zhang et al. 2022, arXiv:2201.00007); see `ca_mkd_feature_loss`.

    For each teacher a connector (1x1 convolution, BatchNorm, ReLU) maps the student's last feature map to the teacher's
    width, and pooling or bilinear interpolation to its size. The teacher's classifier is applied to the result. The
    classifiers are copied, frozen and excluded from checkpoints; in YAML a classifier is read from a checkpoint by
    `load_teacher` with a prefix.

    Args:
        student_channels: Width of the student's feature map.
        classifiers: Each teacher's last linear layer.
        pool_size: Height and width to which a teacher pools its map before its classifier.

    Raises:
        UsageError: There are fewer than two classifiers, or one is not linear or has another width; at a call: the
            features or labels do not fit.
    """

    needs_target = True
    compares_samples = True  # in the connectors' BatchNorm

    def __init__(self, student_channels: int, classifiers: list[nn.Module], pool_size: int = 1) -> None:
        super().__init__()
        if len(classifiers) < 2:
            raise UsageError(f"{len(classifiers)} classifiers, but confidence is relative: give those of two teachers")
        widths: list[int] = []
        for classifier in classifiers:
            if not isinstance(classifier, nn.Linear) or pool_size < 1 or classifier.in_features % pool_size**2:
                raise UsageError(
                    f"{classifier} cannot classify flattened maps with pool_size={pool_size}: give each teacher's last "
                    "nn.Linear, and set pool_size to the height and width of the map before it"
                )
            widths.append(classifier.in_features // pool_size**2)
        self.student_channels = student_channels
        self.pool_size = pool_size
        self.classifiers = nn.ModuleList(
            exclude_from_state_dict(freeze(deepcopy(classifier))) for classifier in classifiers
        )
        self.connectors = nn.ModuleList(convolution(student_channels, width) for width in widths)

    def forward(self, student: Tensor, teacher: Tensor | list[Tensor], target: Tensor) -> Tensor:
        """Compute the loss of a feature map (N, C, H, W), one of each teacher, and class indices (N,)."""
        hints = teacher if isinstance(teacher, list) else [teacher]
        are_maps = all(part.dim() == 4 for part in (student, *hints))
        if not are_maps or student.shape[1] != self.student_channels or len(hints) != len(self.connectors):
            raise UsageError(
                f"student features {tuple(student.shape)} and teacher features {[tuple(hint.shape) for hint in hints]} "
                f"must be a map (N, {self.student_channels}, H, W) and one of each of the {len(self.connectors)} "
                "teachers: list their layers in the term"
            )
        connected = [
            connect(connector, _resized(student, hint)) for connector, hint in zip(self.connectors, hints, strict=True)
        ]
        logits = [
            connect(classifier, functional.adaptive_avg_pool2d(part, self.pool_size).flatten(1))
            for classifier, part in zip(self.classifiers, connected, strict=True)
        ]
        return ca_mkd_feature_loss(connected, hints, torch.stack(logits, dim=1), target)


def _resized(features: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[2], like.shape[3])
    if features.shape[2:] == size:
        return features
    if features.shape[2] >= size[0]:
        return functional.adaptive_avg_pool2d(features, size)
    return functional.interpolate(features, size, mode="bilinear")
