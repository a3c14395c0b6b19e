"""Stateless random numbers: functions of a sample's number, equal in every batch, on every device and machine."""

from __future__ import annotations

import torch
from torch import Tensor

STEP = -0x61C8864680B583EB
"""The increment of SplitMix64, as a signed number."""


def splitmix64(state: Tensor) -> Tensor:
    """Mix 64-bit integers as SplitMix64 does: Guy Steele, Doug Lea, Christine Flood, OOPSLA 2014.

    Args:
        state: int64 of any shape; products wrap modulo 2^64, as those of unsigned numbers do.

    Returns:
        int64 of the same shape.

    Example:
        >>> splitmix64(torch.tensor([STEP])).item() % 2**64 == 0xE220A8397B1DCDAF  # the first number of seed 0
        True
    """
    state = (state ^ _shift_right(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ _shift_right(state, 27)) * -0x6B2FB644ECCEEE15
    return state ^ _shift_right(state, 31)


def stateless_uniform(index: Tensor, count: int, salt: int) -> Tensor:
    """Draw numbers in [0, 1) for each sample.

    Args:
        index: The samples' numbers, int64 (N,).
        count: Numbers a sample.
        salt: A constant of the use: two uses of one sample draw independent numbers.

    Returns:
        float32 (N, count).

    Example:
        >>> both, one = stateless_uniform(torch.tensor([7, 8]), 2, salt=1), stateless_uniform(torch.tensor([8]), 2, 1)
        >>> torch.equal(both[1:], one)
        True
    """
    places = torch.arange(1, count + 1, device=index.device)
    state = (index.unsqueeze(1) * 1_000_003 + salt * 7_919 + places * 104_729) * STEP
    return _shift_right(splitmix64(state), 40).float() / 2**24


def stateless_randint(index: Tensor, high: int, salt: int) -> Tensor:
    """Draw an integer in [0, high) for each sample, int64 (N,).

    Args:
        index: The samples' numbers, int64 (N,).
        high: One above the largest integer.
        salt: A constant of the use.

    Example:
        >>> stateless_randint(torch.tensor([0, 1, 2, 3]), 10, salt=1).tolist()
        [7, 3, 0, 8]
    """
    return (stateless_uniform(index, 1, salt)[:, 0] * high).long()


def _shift_right(values: Tensor, by: int) -> Tensor:
    """Shift in zeros from the left: torch's own shift keeps the sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)
