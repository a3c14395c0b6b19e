"""Chance that belongs to a sample: the same numbers for the same row, whatever batch it is in and on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64: Steele, Lea, Flood, OOPSLA 2014; as signed numbers, whose products wrap alike
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def uniform(index: Tensor, count: int, salt: int) -> Tensor:
    """Numbers in [0, 1) for each row.

    Args:
        index: The rows' numbers, int64 (N,).
        count: How many numbers a row has.
        salt: Tells one use from another.

    Returns:
        float32 (N, count).

    Example:
        >>> one, other = uniform(torch.tensor([7, 8]), 2, salt=1), uniform(torch.tensor([8]), 2, salt=1)
        >>> torch.equal(one[1:], other)
        True
    """
    places = torch.arange(1, count + 1, device=index.device)
    state = (index.unsqueeze(1) * 1_000_003 + salt * 7_919 + places * 104_729) * _STEP
    state = (state ^ _right(state, 30)) * _FIRST
    state = (state ^ _right(state, 27)) * _SECOND
    return _right(state ^ _right(state, 31), 40).float() / 2**24


def choice(index: Tensor, among: int, salt: int) -> Tensor:
    """A number below `among` for each row, int64 (N,)."""
    return (uniform(index, 1, salt)[:, 0] * among).long()


def _right(values: Tensor, by: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return (values >> by) & ((1 << (64 - by)) - 1)
