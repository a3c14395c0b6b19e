"""Reproducible split of a training set into training and validation rows, balanced over classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError


class TrainingRequest(NamedTuple):
    """A data module's settings for the split of its source's training set, and its run directory and device."""

    train_size: int | None
    """Training rows; None for all except the validation rows."""
    val_size: int
    """Validation rows."""
    seed: int
    """Seed of the split."""
    classes: tuple[int, ...] | None = None
    """The only classes to train on; None for all."""
    num_channels: int | None = None
    """Channels that a grey image is repeated to; None for the image's own."""
    folder: Path = Path()
    """The run directory."""
    device: torch.device = torch.device("cpu")
    """The device of the networks."""


class TrainingSplit(NamedTuple):
    """The labels of a training set, and its training and validation rows."""

    labels: Tensor
    """int64 (N,): of all rows."""
    train: Tensor
    """int64 (M,): rows to train on, in ascending order."""
    val: Tensor
    """int64 (V,): rows to validate on, in ascending order."""


def split_rows(
    labels: Tensor, train_size: int | None, val_size: int, seed: int, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Choose disjoint training and validation rows, each in ascending order.

    Each class is shuffled by the seed. Validation takes from the ends of the classes, in proportion to them; training
    takes from their beginnings, equally many of each as long as they last.

    Args:
        labels: int64 (N,).
        train_size: Rows to train on; all the others if not given.
        val_size: Rows to validate on, of all classes.
        seed: Seed of the shuffle.
        classes: The only classes to train on. The validation rows do not depend on it.

    Raises:
        UsageError: There are fewer rows than `train_size` and `val_size` need.

    Example:
        >>> train, val = split_rows(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), train_size=2, val_size=4, seed=0)
        >>> len(set(train.tolist()) | set(val.tolist()))
        6
    """
    check_sizes(train_size, val_size, len(labels))
    # Python guarantees these numbers for all versions; those of torch and numpy may change
    numbers = random.Random(seed)
    shuffled = torch.tensor([numbers.random() for _ in range(len(labels))], dtype=torch.float64).argsort(stable=True)
    rank = torch.empty_like(labels)  # of a row within its shuffled class
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    share = (rank.double() + 0.5) / labels.bincount()[labels]  # fraction of a row's class that precedes it
    by_share = shuffled[share[shuffled].argsort(stable=True)]
    val = by_share[len(labels) - val_size :]
    rest = shuffled[~torch.isin(shuffled, val)]
    if classes is not None:
        rest = rest[torch.isin(labels[rest], torch.tensor(classes))]
        if len(rest) < (train_size or 1):
            raise UsageError(
                f"train_size={train_size} is more than the {len(rest)} images of classes={[*classes]} outside "
                "of the validation set: lower train_size or val_size, or train on more classes"
            )
    train = rest[rank[rest].argsort(stable=True)][:train_size]
    return train.sort().values, val.sort().values


def check_sizes(train_size: int | None, val_size: int, available: int) -> None:
    """Raise a UsageError if there are too few rows; at least one must remain for training."""
    if (train_size or 1) + val_size > available:
        raise UsageError(
            f"train_size={train_size} and val_size={val_size} exceed the {available} images of the training set: "
            "lower one of them"
        )
