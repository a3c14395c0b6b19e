"""Helpers of losses on features: connectors between widths, and lists of layers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.losses.common.checks import check_map_widths, check_maps, check_width, upcast

Features = Tensor | list[Tensor]
"""A side of a term: one layer's features, or those of several layers in the order of the term's list."""


def connect(connector: nn.Module, features: Tensor) -> Tensor:
    """Apply a connector to features of any floating type; the result has at least single precision.

    Example:
        >>> import torch
        >>> connect(nn.Linear(4, 2), torch.zeros(3, 4, dtype=torch.float16)).dtype
        torch.float32
    """
    weight = next(connector.parameters(), features)
    return upcast(connector(features.to(weight.dtype)))


def convolution(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Build a 1x1 convolution with BatchNorm and ReLU, the most common connector in published code."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(),
    )


def layer_pairs(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Pair the layers of both sides: one pair for each layer that the term lists, or a single pair.

    Raises:
        UsageError: The two sides list different numbers of layers, or none.

    Example:
        >>> import torch
        >>> len(layer_pairs([torch.zeros(2, 4), torch.zeros(2, 8)], [torch.zeros(2, 4), torch.zeros(2, 8)]))
        2
    """
    students, teachers = ([side] if isinstance(side, Tensor) else side for side in (student, teacher))
    if not students or len(students) != len(teachers):
        raise UsageError(
            f"{len(students)} layers of the student cannot be paired with {len(teachers)} of the teacher: "
            "list the same number of layers on both sides of the term, in order"
        )
    return list(zip(students, teachers, strict=True))


def check_channel_lists(student_channels: list[int], teacher_channels: list[int], paired: bool = True) -> None:
    """Check that both lists are not empty, and of one length if layers are compared in pairs; else a `UsageError`."""
    unlike = paired and len(student_channels) != len(teacher_channels)
    if unlike or not student_channels or not teacher_channels:
        raise UsageError(
            f"student_channels={student_channels} and teacher_channels={teacher_channels} must name a width for "
            f"every layer{', and be of the same length' if paired else ''}"
        )


def pairs_of_maps(
    student: Features, teacher: Features, student_channels: list[int], teacher_channels: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Pair the layers of both sides as `layer_pairs` does, and check that each is a map of the expected width.

    Raises:
        UsageError: A layer is no map (N, C, H, W) or has another width, or there are more or fewer than expected.
    """
    pairs = layer_pairs(student, teacher)
    _check_count(len(pairs), len(pairs), student_channels, teacher_channels)
    for layer, (s, t) in enumerate(pairs):
        check_map_widths(s, t, student_channels[layer], teacher_channels[layer], layer)
    return pairs


def lists_of_maps(
    student: Features, teacher: Features, student_channels: list[int], teacher_channels: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the layers of both sides, of which there may be different numbers, and check that each is a map.

    Raises:
        UsageError: A layer is no map (N, C, H, W) or has another width, or there are more or fewer than expected.
    """
    students, teachers = ([side] if isinstance(side, Tensor) else side for side in (student, teacher))
    _check_count(len(students), len(teachers), student_channels, teacher_channels)
    for i, s in enumerate(students):
        for j, t in enumerate(teachers):
            check_maps(s, t)
            check_width(s, student_channels[i], "student", i)
            check_width(t, teacher_channels[j], "teacher", j)
    return students, teachers


def _check_count(students: int, teachers: int, student_channels: list[int], teacher_channels: list[int]) -> None:
    if (students, teachers) != (len(student_channels), len(teacher_channels)):
        raise UsageError(
            f"the term lists {students} layers of the student and {teachers} of the teacher, but the loss was built "
            f"for {len(student_channels)} and {len(teacher_channels)}: list that many"
        )


def convolutions(*channels: int, kind: type[nn.Conv2d] | type[nn.ConvTranspose2d] = nn.Conv2d) -> nn.Sequential:
    """Build 3x3 convolutions from each width to the next, with BatchNorm and LeakyReLU of slope 0.1.

    Example:
        >>> [layer.in_channels for layer in convolutions(8, 6, 4)[::3]]
        [8, 6]
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(channels):
        layers += [
            kind(width, following, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(following),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)
