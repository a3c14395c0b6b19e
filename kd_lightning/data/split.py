"""Which rows to train on and which to hold out: the same for everybody, and even over the classes."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError


def split_rows(labels: Tensor, train_size: int | None, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint rows to train and to validate on, each in ascending order.

    Each class is shuffled by the seed. Validation takes from the ends of the classes, in proportion to them; training
    takes from their beginnings, equally many of each as long as they last.

    Args:
        labels: int64 (N,).
        train_size: Rows to train on; all the others if not given.
        val_size: Rows to validate on.
        seed: Of the shuffle.

    Raises:
        UsageError: There are fewer rows than asked for.

    Example:
        >>> train, val = split_rows(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), train_size=2, val_size=4, seed=0)
        >>> len(set(train.tolist()) | set(val.tolist()))
        6
    """
    check_sizes(train_size, val_size, len(labels))
    # Python promises these numbers for ever; torch and numpy may change what a seed shuffles to
    numbers = random.Random(seed)
    shuffled = torch.tensor([numbers.random() for _ in range(len(labels))], dtype=torch.float64).argsort(stable=True)
    rank = torch.empty_like(labels)  # of a row within its shuffled class
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    share = (rank.double() + 0.5) / labels.bincount()[labels]  # of its class, that stands before a row
    by_share = shuffled[share[shuffled].argsort(stable=True)]
    val = by_share[len(labels) - val_size :]
    rest = shuffled[~torch.isin(shuffled, val)]
    train = rest[rank[rest].argsort(stable=True)][:train_size]
    return train.sort().values, val.sort().values


def check_sizes(train_size: int | None, val_size: int, available: int) -> None:
    """A ValueError if there are fewer rows than asked for; some must be left to train on."""
    if (train_size or 1) + val_size > available:
        raise UsageError(
            f"train_size={train_size} and val_size={val_size} are more than the {available} images that there are: "
            "lower one of them"
        )
