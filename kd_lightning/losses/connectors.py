"""What losses on features share: the way from the student's width to the teacher's, and layers in pairs."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.losses.checks import upcast

Features = Tensor | list[Tensor]
"""What a term hands over: one layer's features, or those of several in the order of its list."""


def connect(connector: nn.Module, features: Tensor) -> Tensor:
    """What a connector makes of features of any floating type, in at least single precision.

    Example:
        >>> import torch
        >>> connect(nn.Linear(4, 2), torch.zeros(3, 4, dtype=torch.float16)).dtype
        torch.float32
    """
    weight = next(connector.parameters(), features)
    return upcast(connector(features.to(weight.dtype)))


def convolution(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """A 1x1 convolution with BatchNorm and ReLU: the connector of most published zoos."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(),
    )


def layer_pairs(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """One pair for each layer that a term lists, or the one pair that there is.

    Raises:
        ValueError: The two sides list different numbers of layers, or none.

    Example:
        >>> import torch
        >>> len(layer_pairs([torch.zeros(2, 4), torch.zeros(2, 8)], [torch.zeros(2, 4), torch.zeros(2, 8)]))
        2
    """
    students, teachers = ([side] if isinstance(side, Tensor) else side for side in (student, teacher))
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"{len(students)} layers of the student cannot be paired with {len(teachers)} of the teacher: "
            "list as many on each side of the term, in their order"
        )
    return list(zip(students, teachers, strict=True))
